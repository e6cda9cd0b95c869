"""The texts of a kit: TOML with what a partner or operator must fill in marked FILL IN, and a page of commands."""

from typing import Any

import tomli_w

from common.addresses import join_address
from common.config import Config
from common.kit import KIT_VERSION
from server.provision.consortium import Consortium, Partner
from server.provision.record import KeyName, Keys

_HEAD = f"kit = {KIT_VERSION}\n"

IGNORE = """\
# Private keys, the ledger and the clicks never go into a repository.
*
"""

CARD = """\
# FILL IN: which column of the click log plays which role (docs/DATA.md has all roles). This one is an example.
[columns]
user = "user_id"
time = "shown_at"
text = ["title"] # one column, or several
clicked = "clicked" # 0 or 1, or a number beside [click] threshold

[time]
unit = "iso" # or "seconds", "milliseconds"

# DECIDE: columns that say of a person what no model may use; `hushclick check` says what gives them away.
# [sensitive]
# columns = ["age_band", "gender"]
"""


def worker_toml(consortium: Consortium, partner: Partner, tables: dict[str, dict[str, Any]], config: Config) -> str:
    """Returns a partner's own configuration, with the policy that the run asks for."""
    names = ("model", "privacy", "evaluation", "aggregation")
    model, privacy, evaluation, aggregation = (tomli_w.dumps({name: tables[name]}) for name in names)
    elsewhere = "# FILL IN: where the text encoder lies on this machine\n" if _is_path(config) else ""
    return f"""\
{_HEAD}# Partner {partner.name} of {consortium.name}: what its worker reads. Relative paths are taken from this folder.
name = "{partner.name}"
declared_users = {partner.declared_users} # published; the partner's weight, and the divisor of its steps
clicks = "clicks.parquet" # FILL IN: the click log, CSV or Parquet; it never leaves this machine
card = "card.toml" # FILL IN: which of its columns plays which role
ledger = "ledger.jsonl" # what was spent; back it up, and never put an older copy back
state = "state" # folder for what was sent last, so that no noise is drawn twice
identity = "identity.pem"
roster = "roster.toml" # compare its hash with the other partners': `hushclick check client.toml` prints it
signing_key = "signing.pub" # the final model is taken only if it is signed with this key

# Must be the same at all partners and at the server.
{elsewhere}{model}
# DECIDE: this partner's own budget. {_calibrated(config)}
# Nothing that the server sends can change it; a server that asks for more is refused.
{privacy}
# The same at all partners: which rows this partner never trains on, where partners evaluate the model.
{evaluation}
# DECIDE: the least that this partner takes part under.
{aggregation}
# How long this partner keeps what it need not keep for ever. The ledger and the audit log are kept whole.
[retention]
log_days = 30 # state/worker.log and state/supernode.log, by day
secrets_hours = 24.0 # a round's secrets and contribution go with the round, and at the latest then
delivered_models = 5 # the newest so many

# Where what Flower runs is another user (`shim_user` in client.toml): a socket outside this folder, which stays mode
# 0700, and a group of that user's.
# [worker]
# listen = "unix:/run/hushclick/{partner.name}/socket"
# group = "hushclick-shim"
"""


def _is_path(config: Config) -> bool:
    return config.model.encoder.startswith("path:")


def _calibrated(config: Config) -> str:
    privacy, rounds = config.privacy, config.round
    if privacy.mode == "none":
        return 'Mode "none" protects nobody.'
    if privacy.mode == "label":
        return f'Mode "label" protects click labels and nothing else: epsilon {privacy.epsilon_of_a_label:g} of one.'
    return (
        f"The noise is for epsilon {privacy.epsilon:g} at delta {privacy.delta:g} over\n"
        f"# {rounds.num_rounds} rounds of {rounds.local_steps} steps at sampling rate {privacy.sampling_rate:g}."
    )


def client_toml(consortium: Consortium, partner: Partner) -> str:
    """Returns where a partner finds the server, and how it knows it."""
    address = join_address(consortium.server.host[0], consortium.server.port)
    return f"""\
{_HEAD}# Partner {partner.name} of {consortium.name}: how its client reaches the server.
name = "{partner.name}"
superlink = "{address}" # host:port
ca = "ca.crt" # the consortium's own authority; no other is trusted
node_key = "node.key" # what the server knows this partner's connection by
worker = "worker.toml"
signing_key = "signing.pub" # what the final model is signed with
# DECIDE: another user for all that Flower runs, so that it cannot read this folder; `hushclick client` is then started
# as root, and worker.toml names listen and group of its socket.
# shim_user = "hushclick-shim"
# Or the worker runs by itself, in a container or a service of its own; this file is then all that `client` reads.
# start_worker = false
# worker_socket = "unix:/run/hushclick/{partner.name}/socket"
# worker_owner = "10001" # name or number of the worker's user
"""


def server_toml(consortium: Consortium) -> str:
    """Returns what the server starts from."""
    return f"""\
{_HEAD}# The server of {consortium.name}. Relative paths are taken from this folder.
# FILL IN: held-out clicks of the central evaluation, CSV or Parquet, no partner's. Where partners evaluate (run.toml:
# [evaluation]) and the operator has none, take out both lines.
clicks = "central.parquet"
card = "card.toml" # FILL IN: which of their columns plays which role
config = "run.toml"
roster = "roster.toml"
run = "run" # folder of results: made at the first start, gone on with at the next
# DECIDE: where the gate listens that partners reach; "0.0.0.0" lets them in. It passes Flower's Fleet API alone, and
# the SuperLink behind it, whose control API asks no user who they are, stays on loopback.
host = "127.0.0.1"
port = {consortium.server.port}
certificate = "server.crt"
key = "server.key"
ca = "ca.crt"
signing_key = "signing.key"
nodes = "nodes" # public node keys; a partner whose file is gone is taken off the list
database = "superlink.db"
log = "superlink.log"
log_days = 30 # that what is turned of it by day is kept; the audit log is kept whole
"""


def partner_readme(consortium: Consortium, partner: Partner, keys: Keys) -> str:
    """Returns the page of a partner's kit."""
    own = [_FILES[name] for name in ("identity", "node") if name not in keys.made_here]
    first, why = (
        ("hushclick keys new --out .", f"made {' and '.join(own)}, whose public halves the operator has; not again")
        if own
        else ("hushclick keys show identity.pem", "shows the public half, which must stand in `roster.toml`")
    )
    return f"""\
# Kit of {partner.name}, {consortium.name}

```
{first}
hushclick check client.toml
hushclick client client.toml
```

1. `{first.split(" -")[0]}` {why}.
2. Fill in what says FILL IN and decide what says DECIDE, in `worker.toml` and `card.toml`; then run `check` until every
   line says ok.
3. `client` stays up and takes part in the rounds that this partner's own policy allows.
{_own(own)}{_made_here(partner, keys)}
| file | what |
|---|---|
| `client.toml` | where the server is |
| `worker.toml`, `card.toml` | clicks, budget, policy: this partner's own |
| `identity.pem` | signs this partner's part in every sum; secret |
| `node.key`, `node.pub` | what the server knows this partner's connection by; `node.key` is secret |
| `roster.toml` | all partners' names, public keys and weights; the same everywhere, or no round comes about |
| `ca.crt` | the authority that the server's certificate is checked with |
| `signing.pub` | what the final model is signed with |

Ask the other partners, not the operator, whether their roster is the same: its hash is in every round, and whoever
writes the roster chooses whose keys a sum is masked with.
"""


_FILES: dict[KeyName, str] = {"identity": "identity.pem", "node": "node.key"}


def _own(files: list[str]) -> str:
    if not files:
        return ""
    return f"\nThis kit comes without {' and '.join(files)}: unpack it beside the one that was made here, mode 0600.\n"


def _made_here(partner: Partner, keys: Keys) -> str:
    if not keys.made_here:
        return ""
    files = " and ".join(f"`{_FILES[name]}`" for name in keys.made_here)
    warning = (
        "\nThe operator made `identity.pem` and could have kept it: who has it can take this partner's place in secure"
        f"\naggregation. To rule that out, run `hushclick keys rotate . --only identity`, and have {partner.name}'s new"
        "\npublic half put into `consortium.toml`.\n"
        if "identity" in keys.made_here
        else ""
    )
    return f"\nThis kit holds {files}, secret: take it over a channel that only the two of you read.\n{warning}"


def server_readme(consortium: Consortium) -> str:
    """Returns the page of the server's folder."""
    hosts = ", ".join(consortium.server.host)
    return f"""\
# Server of {consortium.name}

```
hushclick server server.toml
```

Fill in what says FILL IN in `server.toml` first. `server.crt` is for {hosts}; `provision --rotate-server` issues it
anew before it ends. Partners are told {join_address(consortium.server.host[0], consortium.server.port)}.

`server.key` and `signing.key` are secret. `nodes/` holds the public key of every partner that may connect. No key of a
partner and no key of the authority belongs here.
"""
