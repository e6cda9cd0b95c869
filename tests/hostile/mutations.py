"""Protections, each with the change that takes it out and the test that must then fail.

`edits` are (exact source text, what stands there instead); a text occurs once in its file. Where source changes, the
text here changes with it: a protection that this table does not find is an error, so that none gets lost unseen.
"""

# ruff: noqa: E501 (a table: one protection a line)

from dataclasses import dataclass

CHECKS, CLIENT, KEYS = "common/secagg/checks.py", "common/secagg/client_role.py", "common/secagg/keys.py"
SERVER, UNMASK, TRANSCRIPT = "common/secagg/server_role.py", "common/secagg/unmasking.py", "common/secagg/transcript.py"
PARTICIPANT, WORKER, SENT = "client/participant.py", "client/worker.py", "client/sent.py"
SECURE = "server/secure.py"
RECEIVED, LINEAGE = "client/received.py", "common/lineage.py"
STATISTICS = "client/statistics.py"
WORK = "client/work.py"
TUNED, TAIL = "client/encoder_gradients.py", "common/model/tail.py"
EVALUATION = "client/evaluation.py"
CHARGING = "client/charging.py"
BUDGET, LEDGER, CHAIN = "client/budget.py", "common/privacy/ledger.py", "common/privacy/chain.py"

_HOSTILE = "tests/hostile/test_hostile_{}.py::test_{}"
_VECTOR = "tests/vectors/test_vectors.py::test_what_must_be_refused_is_refused_there[secagg_bad_{}.json]"
_SECAGG = "tests/common/secagg/test_{}.py::test_{}"


@dataclass(frozen=True)
class Mutation:
    """One protection taken out."""

    file: str
    edits: tuple[tuple[str, str], ...]
    test: str

    @property
    def name(self) -> str:
        return f"{self.file}: {' '.join(self.edits[0][0].split())[:90]}"


def _hostile(file: str, module: str, test: str, *edits: tuple[str, str]) -> Mutation:
    return Mutation(file, edits, _HOSTILE.format(module, test))


def _vector(file: str, name: str, *edits: tuple[str, str]) -> Mutation:
    return Mutation(file, edits, _VECTOR.format(name))


def _secagg(file: str, module: str, test: str, *edits: tuple[str, str]) -> Mutation:
    return Mutation(file, edits, _SECAGG.format(module, test))


def _server(test: str, *edits: tuple[str, str]) -> Mutation:
    return Mutation(SECURE, edits, f"tests/server/test_secure.py::test_{test}")


_VERIFY_ADVERTISEMENT = (
    'verify(roster.public_key(number), advertisement.signature, what, "advertise", session, number, *keys)'
)
_DRAWN_FOR = "state.revealed != revealed_for(state.session, task.cohort, task.advertisements, task.num_groups)"
_OWNERS = "len(set(revealed.owners)) < len(revealed.owners) or not set(revealed.owners) <= allowed"
_THRESHOLD = "threshold != found.threshold or threshold < policy.least_threshold"
_BITS = "task.bits != bits or not policy.least_bits <= bits <= policy.most_bits"
_SENDERS = "not senders <= others or (own_shape.complete and senders != others)"
_DEALT = "number not in self.first or not set(shares.recipients) <= allowed or len(holders) != self.shape.num_holders"
_BODY = "sum(map(len, pieces)) != self._grid.length or len(upload.slots) != SLOTS_BYTES"
_LATE = "number not in self.second or number in self._uploads or self.third"

CHECK_MUTATIONS = (
    _hostile(CHECKS, "keys", "a_duplicate_participant_is_refused", ('require_ascending(cohort, "cohort", len(member.roster))', "")),
    _hostile(CHECKS, "keys", "a_duplicate_participant_is_refused", ('require_ascending(numbers, "advertisements", len(member.roster))', "")),
    _hostile(CHECKS, "keys", "a_signature_by_an_identity_outside_the_roster_is_refused", ("if not set(numbers) <= set(cohort):", "if False:")),
    _hostile(CHECKS, "keys", "an_own_entry_replaced_is_refused[mask]", ("if not own or own[0].to_bytes() != state.own:", "if not own:")),
    _hostile(CHECKS, "keys", "an_own_entry_replaced_is_refused[mask]", ("if not own or own[0]", "if own and own[0]")),
    _hostile(CHECKS, "attacks", "one_sum_over_all_after_a_coin_was_shown_is_refused", ("if task.coins or state.revealed:", "if task.coins:")),
    _hostile(CHECKS, "keys", "coins_without_groups_are_refused", ("if task.coins or state.revealed:", "if state.revealed:")),
    _hostile(CHECKS, "keys", "groups_over_other_participants_than_the_coin_was_for_are_refused", (_DRAWN_FOR, "False")),
    _hostile(CHECKS, "keys", "groups_without_a_revealed_coin_are_refused", (_DRAWN_FOR, "False")),
    _hostile(CHECKS, "keys", "groups_over_other_participants_than_the_coin_was_for_are_refused", (", advertisements, num_groups)\n\n", ", advertisements)\n\n")),
    _hostile(CHECKS, "keys", "groups_over_other_participants_than_the_coin_was_for_are_refused", ("require_coins(state.session, first, coins)", "")),
    _secagg(CHECKS, "client_role", "a_coin_counts_only_where_its_commitment_is_signed", ("check_signature(member.roster, state.session, advertisement)", "pass")),
    _hostile(CHECKS, "keys", "fewer_than_the_policys_participants_are_refused", ("if num_participants < policy.least_participants:", "if False:")),
    _hostile(CHECKS, "keys", "a_threshold_of_at_most_half_of_participants_and_colluders_is_refused[2]", (_THRESHOLD, "threshold < policy.least_threshold")),
    _hostile(CHECKS, "keys", "a_threshold_under_the_policys_is_refused", (_THRESHOLD, "threshold != found.threshold")),
    _hostile(CHECKS, "keys", "a_key_swapped_for_a_peer_is_refused", (_VERIFY_ADVERTISEMENT, "")),
    _vector(CHECKS, "ring_of_2", ("if task.ring != RING:", "if False:")),
    _vector(CHECKS, "length_of_0", ("if not 1 <= task.length < 2**40:", "if False:")),
    _hostile(CHECKS, "tasks", "a_ring_grid_weight_or_length_of_the_servers_choice_is_refused[bits=26]", (_BITS, "not policy.least_bits <= bits <= policy.most_bits")),
    _vector(CHECKS, "bits_below_the_policys", (_BITS, "task.bits != bits")),
    _hostile(CHECKS, "tasks", "a_ring_grid_weight_or_length_of_the_servers_choice_is_refused[clip=2.0]", ("if task.clip not in (0.0, policy.update_bound):", "if False:")),
    _hostile(CHECKS, "tasks", "a_weight_other_than_the_rosters_is_refused[0.25]", ("if task.weight != pinned:", "if task.weight > pinned:")),
    _hostile(CHECKS, "tasks", "a_weight_other_than_the_rosters_is_refused[1.0]", ("if task.weight != pinned:", "if task.weight < pinned:")),
    _vector(CHECKS, "model_hash_cut", ("if len(task.model_hash) != HASH_BYTES or len(task.config_hash) != HASH_BYTES:", "if False:")),
    _vector(CHECKS, "second_twice", ('require_ascending(second, "U2", len(member.roster))', "")),
    _vector(CHECKS, "second_outside_the_first", ("if not set(second) <= set(first):", "if False:")),
    _vector(CHECKS, "second_without_itself", ("if member.number not in second:", "if False:")),
    _hostile(CHECKS, "views", "fewer_survivors_than_the_policys_participants_are_refused", ("least = max(own_shape.least_survivors, member.policy.least_participants)", "least = own_shape.least_survivors")),
    _vector(CHECKS, "second_too_few", ("if len(second) < least:", "if False:")),
    _vector(CHECKS, "sender_twice", ('require_ascending(task.senders, "senders", len(member.roster))', "")),
    _vector(CHECKS, "sender_left_out", (_SENDERS, "not senders <= others")),
    _vector(CHECKS, "sender_outside_the_second", (_SENDERS, "own_shape.complete and senders < others")),
)  # fmt: skip

CLIENT_MUTATIONS = (
    _hostile(CLIENT, "keys", "a_key_swapped_for_a_peer_is_refused", ("for advertisement in first if own_shape.complete else ():", "for advertisement in ():")),
    _secagg(CLIENT, "neighbours", "signatures_of_the_chosen_are_checked_before_sharing_with_them", ("for advertisement in () if own_shape.complete else recipients:", "for advertisement in ():")),
    _secagg(CLIENT, "neighbours", "signatures_of_peers_are_checked_before_masking_with_them", ("for number in peers if not own_shape.complete else ():", "for number in ():")),
    _hostile(CLIENT, "keys", "groups_over_other_participants_than_the_coin_was_for_are_refused", ("return replace(state, revealed=drawn_for), state.coin", "return state, state.coin")),
    _hostile(CLIENT, "views", "a_split_view_of_u1_ends_at_the_boxes", ('digest("box", state.session, first_hash, member.number, peer)', 'digest("box", state.session, member.number, peer)'), ('digest("box", state.session, first_hash, sender, member.number)', 'digest("box", state.session, sender, member.number)')),
    _vector(CLIENT, "threshold_changed", ("if task.threshold != state.threshold:", "if False:")),
    _secagg(CLIENT, "client_role", "a_body_of_another_length_is_not_signed", ("if self._length != task.length:", "if False:")),
    _hostile(CLIENT, "views", "fewer_survivors_than_the_policys_participants_are_refused", ("max(own_shape.least_survivors, member.policy.least_participants)", "own_shape.least_survivors")),
    _hostile(CLIENT, "views", "a_split_view_of_u3_opens_one_of_the_two_at_most", ("if state.survivors:", "if False:")),
    _vector(CLIENT, "survivor_twice", ("require_ascending(numbers, what, len(member.roster))", "pass")),
    _vector(CLIENT, "alive_and_dead", ("if set(task.survivors) & set(task.dropped):", "if False:")),
    _vector(CLIENT, "neither_alive_nor_dead", ("if tuple(sorted((*task.survivors, *task.dropped))) != state.second:", "if False:")),
    _vector(CLIENT, "declared_dead_itself", ("if member.number not in task.survivors:", "if False:")),
    _vector(CLIENT, "survivors_too_few", ("if len(task.survivors) < state.least_survivors:", "if False:")),
    _hostile(CLIENT, "rounds", "stages_out_of_order_are_refused", ("if not state.survivors:", "if False:")),
    _vector(CLIENT, "signature_counted_twice", ('require_ascending(task.signers, "signers", len(member.roster))', "")),
    _hostile(CLIENT, "views", "a_signature_of_a_dropped_one_does_not_count", ("set(state.holders) & set(state.survivors)", "set(state.holders)")),
    _vector(CLIENT, "signatures_too_few", ("if len(task.signers) < state.threshold:", "if False:")),
    _hostile(CLIENT, "views", "fewer_than_t_good_consistency_signatures_are_refused[flipped]", ('verify(key, signature, what, "confirm", *_confirmed(state, state.survivors))', "")),
    _secagg(CLIENT, "neighbours", "no_share_leaves_without_every_survivors_word", ('verify(member.roster.public_key(owner), signature, what, "masked", *bound)', "")),
    _hostile(CLIENT, "views", "one_kind_of_share_per_owner_leaves", ("state.held[owner][: shamir.SHARE_BYTES] if owner in alive else state.held[owner][shamir.SHARE_BYTES :]", "state.held[owner][shamir.SHARE_BYTES :]")),
    _hostile(CLIENT, "views", "a_commitment_that_was_changed_names_a_dealer_and_never_opens_another_share", ("if commitment(state.session, sender, member.number, pair) == promised:", "if True:")),
    _hostile(TRANSCRIPT, "tasks", "a_consistent_difference_for_one_client_leaves_no_sum[model]", ("first_hash, model_hash, config_hash\n", "first_hash, config_hash\n")),
    _hostile(TRANSCRIPT, "tasks", "a_consistent_difference_for_one_client_leaves_no_sum[local_steps]", ("first_hash, model_hash, config_hash\n", "first_hash, model_hash\n")),
    _hostile(KEYS, "keys", "a_low_order_channel_key_is_refused_before_anything_is_shared[0]", ('raise ProtocolError("a public key of low order or of a wrong length") from None', "return bytes(KEY_BYTES)")),
    _hostile(KEYS, "keys", "a_low_order_mask_key_is_refused_before_data_is_touched[1]", ('raise ProtocolError("a public key of low order or of a wrong length") from None', "return bytes(KEY_BYTES)")),
    _hostile(KEYS, "views", "a_bit_flipped_box_is_refused[0]", ('raise ProtocolError(f"{what}: does not open: altered, or of another round, sender or recipient") from None', "return box[:-TAG_BYTES]")),
)  # fmt: skip

_EVERYONE = "if not state.complete or task.dropped:"
_AT_ONCE_SHARES = "[state.held[owner][: shamir.SHARE_BYTES] for owner in owners]"

AT_ONCE_MUTATIONS = (
    _hostile(CLIENT, "at_once", "not_everyone_said_that_it_masked", ("_check_masked(member, state, state.second, task.masked)", "")),
    _hostile(CLIENT, "at_once", "who_was_shown_another_u2_is_not_revealed_by_those_who_are_not_in_it", ("_check_masked(member, state, state.second, task.masked)", "")),
    _hostile(CLIENT, "at_once", "a_word_within_another_round_or_u2_does_not_count", ('verify(member.roster.public_key(owner), signature, what, "masked", *bound)', "")),
    _vector(CLIENT, "at_once_word_within_another_second", ('verify(member.roster.public_key(owner), signature, what, "masked", *bound)', "")),
    _hostile(CLIENT, "at_once", "a_u3_that_is_not_u2_opens_nothing_with_the_signature", (_EVERYONE, "if not state.complete:")),
    _secagg(CLIENT, "neighbours", "no_share_leaves_together_with_the_survivors", (_EVERYONE, "if task.dropped:")),
    _hostile(CLIENT, "at_once", "who_signed_other_survivors_reveals_nothing_at_once", ("_, signature = confirm(member, state, task)", 'signature = sign(member.identity, "confirm", *_confirmed(state, task.survivors))')),
    _hostile(CLIENT, "at_once", "no_share_of_a_key_leaves_with_a_signature", (_AT_ONCE_SHARES, _AT_ONCE_SHARES.replace("[: shamir.SHARE_BYTES]", "[shamir.SHARE_BYTES :]"))),
    _hostile(PARTICIPANT, "at_once", "after_shares_left_with_the_signature_the_round_is_final_also_after_a_restart[disk]", ("self._finish(task.session)\n            return signature, revealed", "return signature, revealed")),
    _hostile(PARTICIPANT, "at_once", "statistics_reveal_at_once_over_the_whole_roster_or_not_at_all", ("if exact and len(task.survivors)", "if exact and not task.masked and len(task.survivors)")),
    _server("a_server_that_dies_while_everyone_reveals_finishes_from_its_journal[3]", ("if at_once:\n            self.journal.begin(round_number, at_once)", "")),
    _server("groups_that_revealed_are_in_the_journal_of_those_that_are_asked_after_them", ("after=any(tally.everyone for tally in opening)", "after=False")),
    _server("shares_that_were_not_asked_for_do_not_count", ("elif confirmation.shares:", "elif False:")),
)  # fmt: skip

_DAMAGED = "except (OSError, ValueError, KeyError, TypeError, AttributeError):\n            raise LedgerError("
PARTNER_MUTATIONS = (
    _hostile(PARTICIPANT, "rounds", "the_same_attempt_twice_is_refused_also_after_a_restart", ("register.require_new(session)", "pass")),
    _hostile(PARTICIPANT, "rounds", "secrets_of_an_attempt_that_was_given_up_are_erased_with_the_next", ("for name in register.begin(session, state.session.hex()):\n            self._store.erase(name)", "register.begin(session, state.session.hex())")),
    _hostile(PARTICIPANT, "rounds", "secrets_of_a_round_that_was_left_open_are_erased_with_the_next", (".finish(session.round):\n            self._store.erase(name)", ".finish(session.round):\n            pass")),
    _hostile(PARTICIPANT, "keys", "a_coin_is_revealed_once_and_only_beside_the_own_entry", ("if state.revealed:", "if False:")),
    _hostile(PARTICIPANT, "attacks", "neighbours_that_were_refused_are_not_drawn_again", ("self._store.erase(state.session.hex())\n            raise", "raise")),
    _hostile(PARTICIPANT, "tasks", "another_model_or_config_for_one_client_is_refused", ("if (task.model_hash, task.config_hash) != (model_hash, config_hash):", "if False:")),
    _hostile(PARTICIPANT, "rounds", "a_second_upload_is_refused_also_after_a_restart", ("after, upload = masking.finish()\n        self._keep(after)", "after, upload = masking.finish()")),
    _hostile(PARTICIPANT, "tasks", "statistics_are_summed_over_the_whole_roster_or_not_at_all", ("if exact and len(task.survivors) != len(self._member.roster):", "if False:")),
    _hostile(PARTICIPANT, "views", "a_split_view_of_u3_opens_one_of_the_two_at_most", ("self._state(task.session, Masked), task)\n        self._keep(after)", "self._state(task.session, Masked), task)")),
    _hostile(PARTICIPANT, "rounds", "a_retry_after_unmask_is_refused_also_after_a_restart", ("for name in _Register(self._folder, session.run_id).finish(session.round):", "for name in ():")),
    _hostile(PARTICIPANT, "rounds", "a_state_that_a_disk_brings_back_is_not_answered_from", ("self._store.get(hashed.hex()) if under_way else None", "self._store.get(hashed.hex())")),
    _hostile(PARTICIPANT, "rounds", "stages_out_of_order_are_refused", ("if not isinstance(state, kind):", "if False:")),
    _hostile(PARTICIPANT, "rounds", "a_damaged_register_answers_nothing_any_more", (_DAMAGED, _DAMAGED.replace("raise", "self._final, self._begun = -1, {}\n            return\n            raise"))),
    _hostile(PARTICIPANT, "rounds", "a_retry_after_unmask_is_refused_also_after_a_restart", ("if session.round <= self._final:", "if False:")),
    _hostile(PARTICIPANT, "rounds", "the_same_attempt_twice_is_refused_also_after_a_restart", ("if session.attempt <= last.attempt:", "if False:")),
    _hostile(PARTICIPANT, "rounds", "attempts_at_one_round_are_numbered", ("if last.tries >= MOST_ATTEMPTS:", "if False:")),
    _hostile(PARTICIPANT, "rounds", "a_round_that_is_two_ahead_ends_the_one_that_is_under_way", ("self._final = max(self._final, session.round - 2)", "pass")),
    _hostile(PARTICIPANT, "shared_noise", "a_part_of_the_noise_is_in_one_sum_only", ("if session.round <= self._closed:", "if False:")),
    _hostile(PARTICIPANT, "shared_noise", "a_part_of_the_noise_is_in_one_sum_only", (".close(opened.task.session.round)", "._path")),
    _hostile(CHARGING, "statistics", "a_retry_gets_the_same_noisy_vector_and_is_charged_once", ("earlier_D = sent.reuse(task, shared)", "earlier_D = None")),
    _hostile(CHARGING, "statistics", "a_budget_that_went_meanwhile_refuses_before_data_is_touched", ("reservation = budget.reserve(event(), room)", "reservation = 0"), ("budget.commit(reservation)", "pass")),
    _hostile(CHARGING, "statistics", "every_release_is_charged_and_one_too_many_refused_before_data_is_touched", ("if not sent.answered(session.round) and budget.affordable_rounds(event()) == 0:", "if False:")),
    _hostile(CHARGING, "evaluation", "a_retry_of_an_evaluation_gets_the_same_bytes_and_is_charged_once", ("earlier_D = sent.reuse(task, shared)", "earlier_D = None")),
    _hostile(CHARGING, "evaluation", "a_budget_that_went_meanwhile_refuses_an_evaluation_before_data_is_touched", ("reservation = budget.reserve(event(), room)", "reservation = 0"), ("budget.commit(reservation)", "pass")),
    _hostile(CHARGING, "evaluation", "every_evaluation_is_charged_and_one_too_many_refused_before_data_is_touched", ("if not sent.answered(session.round) and budget.affordable_rounds(event()) == 0:", "if False:")),
    _hostile(EVALUATION, "evaluation", "a_run_has_no_more_evaluations_than_the_partner_allows", ("if number not in rounds and len(rounds) >= evaluation.releases:", "if False:")),
    _hostile(EVALUATION, "evaluation", "an_evaluation_of_a_run_that_it_took_no_part_in_is_refused_at_once", ("if found is None or evaluated_in(found[0]) or not self._host.took_part(found[0]):", "if found is None:")),
    _hostile(EVALUATION, "evaluation", "training_leaves_room_for_the_evaluation", ("return [self._event(SessionId(run_id, 0, 0))] * left", "return ()")),
    _hostile(EVALUATION, "evaluation", "a_model_of_another_layout_or_out_of_bounds_is_refused_and_costs_nothing", ("model = self._host.loaded(task)", ""), ("model, self.terms, bound, grid)", "self._host.loaded(task), self.terms, bound, grid)")),
    _hostile(WORKER, "shared_noise", "a_part_of_the_noise_is_in_one_sum_only", ('once = self.config.privacy.mode == "distributed"', "once = False")),
    _hostile(WORKER, "shared_noise", "noise_is_not_shared_among_neighbours", ("self._require_complete(task)\n", "\n")),
    _hostile(WORKER, "rounds", "a_plain_contribution_never_leaves_a_partner_whose_method_is_secure", ("self._require_plain()\n        self._check(task)", "self._check(task)")),
    _hostile(WORKER, "rounds", "a_plain_contribution_never_leaves_a_partner_whose_method_is_secure", ("self._require_plain()\n        return StatisticsReply", "return StatisticsReply")),
    _hostile(WORK, "tasks", "masking_and_work_of_two_rounds_are_refused", ("    if not same:\n", "    if False:\n")),
    _hostile(WORKER, "leaks", "promise_1_refusals_say_the_same_whatever_the_data", ("self._require_affordable(task)\n", "\n")),
    _hostile(WORKER, "tasks", "work_that_this_partner_does_not_do_is_refused_before_the_budget", ("self._check(work)\n", "\n")),
    _hostile(WORKER, "tasks", "work_that_this_partner_does_not_do_is_refused_before_the_budget", ("self._require_steps(task.plan.local_steps)", "")),
    _hostile(WORKER, "tasks", "work_that_this_partner_does_not_do_is_refused_before_the_budget", ("if task.fingerprint != own:", "if False:")),
    _hostile(WORKER, "tasks", "work_that_this_partner_does_not_do_is_refused_before_the_budget", ("require_in_bounds(task.model_D)", "")),
    _hostile(WORKER, "tasks", "without_privacy_a_bad_update_is_refused_naming_field_and_bound", ('if not self.config.privacy.noised:\n                require_codable', "if False:\n                require_codable")),
    _hostile(WORKER, "tasks", "under_privacy_nothing_that_depends_on_data_refuses", ('if not self.config.privacy.noised:\n                require_codable', "if True:\n                require_codable")),
    _hostile(WORKER, "tasks", "statistics_are_refused_where_privacy_is_on", ('if self.config.privacy.mode != "none" or self.config.model.item_rates != "exact":', "if False:")),
    _hostile(PARTICIPANT, "keys", "a_partner_whose_key_is_not_that_of_its_roster_takes_no_part", ("if config.name not in names or roster.member(roster.number(config.name)).public_key != public:", "if False:")),
    _hostile(SENT, "rounds", "a_round_asked_for_another_model_or_plan_is_refused", ("if answered != _task_hash(task, shared):", "if False:")),
    _hostile(SENT, "attacks", "a_contribution_with_features_of_its_own_is_not_used_in_a_later_attempt", ("task.plan, shared)).encode()", "task.plan)).encode()")),
)  # fmt: skip

_ANCHORS, _PERIOD = "tests/client/test_anchors.py::test_{}", "tests/client/test_period.py::test_{}"
_FORMAT = "tests/common/privacy/test_ledger_format.py::test_{}"
_OWNER = "self._owner is not None and chain.owner is not None and chain.owner.partner != self._owner"
LEDGER_MUTATIONS = (
    Mutation(BUDGET, (("self._ledger.require(known)", "pass"),), _ANCHORS.format("promise_2_cannot_overspend_by_a_ledger_that_lost_its_end_before_the_start[cut-local]")),
    Mutation(BUDGET, (("self._head_file.keep(self._ledger.head())", "pass"),), _ANCHORS.format("the_head_is_kept_at_every_reservation_in_the_state_folder")),
    Mutation(BUDGET, (("if self._ledger.place_of(anchor) is None:", "if False:"),), _ANCHORS.format("a_worker_refuses_to_go_on_without_the_servers_anchor")),
    Mutation(BUDGET, (("if self._lacks:", "if False:"),), _ANCHORS.format("an_anchor_that_the_ledger_has_changes_nothing_and_a_false_one_stops_until_a_restart")),
    Mutation(WORKER, (("self._budget.require_anchor(task.anchor)", "pass"),), _ANCHORS.format("a_worker_refuses_to_go_on_without_the_servers_anchor")),
    Mutation(BUDGET, (("if last is not None and now < last - CLOCK_TOLERANCE:", "if False:"),), _PERIOD.format("a_clock_that_is_set_back_is_refused_and_frees_nothing")),
    Mutation(CHAIN, (("max(now.astimezone(UTC), self.last_time or now)", "now.astimezone(UTC)"),), _FORMAT.format("a_clock_that_goes_back_writes_no_earlier_time")),
    Mutation(CHAIN, (("bytes.fromhex(self.owner.nonce)", "b''"),), _FORMAT.format("an_anchor_is_the_hash_of_nonce_length_and_head")),
    Mutation(CHAIN, (("if version < self._version:", "if False:"),), "tests/common/privacy/test_ledger.py::test_a_record_that_makes_no_sense_is_refused_by_line"),
    Mutation(LEDGER, ((f"if {_OWNER}:", "if False:"),), _FORMAT.format("a_ledger_of_another_owner_is_neither_read_nor_written")),
)  # fmt: skip

USERDATA, ERASURE, RETENTION = "client/userdata.py", "client/erasure.py", "client/retention.py"
_ERASED, _KEPT = "tests/client/test_erasure.py::test_{}", "tests/client/test_retention.py::test_{}"
ERASURE_MUTATIONS = (
    Mutation(USERDATA, (("rows = self.erased.without(rows)", "pass"),), _ERASED.format("a_running_worker_trains_on_nobody_who_was_erased")),
    Mutation(USERDATA, (("if self._loaded is None or self._loaded[0] != mark:", "if self._loaded is None:"),), _ERASED.format("a_running_worker_trains_on_nobody_who_was_erased")),
    Mutation(ERASURE, (("if key is None or not hmac.compare_digest(check, _hash(key, \"check\", \"\")):", "if key is None:"),), _ERASED.format("a_list_that_cannot_be_relied_on_stops_all_use_of_data[another key]")),
    Mutation(ERASURE, (("if self._key_file.exists() or self._seen:", "if False:"),), _ERASED.format("a_list_that_cannot_be_relied_on_stops_all_use_of_data[list gone]")),
    Mutation(SENT, (("if found.delta_D is None:\n            raise ProtocolError(_gone(task.round))", ""),), _ERASED.format("a_contribution_that_counts_the_user_is_dropped_and_its_round_not_answered_again")),
    Mutation(RETENTION, (("round_number <= final.get(path.stem.removeprefix(\"sent-\"), -1)", "False"),), _KEPT.format("a_contribution_goes_with_its_round_and_the_mark_stays")),
)  # fmt: skip

SERVER_MUTATIONS = (
    _secagg(SERVER, "server_role", "an_advertisement_by_one_outside_the_cohort", ("if advertisement.number != number or number not in self.cohort:", "if advertisement.number != number:")),
    _vector(SERVER, "server_advertisement_of_another", ("if advertisement.number != number or number not in self.cohort:", "if number not in self.cohort:")),
    _vector(SERVER, "server_advertisement_altered", ("check_signature(self._roster, self._hash, advertisement)", "")),
    _hostile(SERVER, "keys", "the_server_names_whose_key_is_of_low_order", ('require_good_key(key, f"advertisement of {self._roster.member(number).name}")', "pass")),
    _hostile(SERVER, "keys", "the_server_names_whose_coin_is_another", ("require_coins(self._hash, [self._found[number]], [coin])", "")),
    _secagg(SERVER, "server_role", "shares_of_one_who_did_not_advertise_do_not_count", (_DEALT, _DEALT.removeprefix("number not in self.first or "))),
    _vector(SERVER, "server_shares_for_a_stranger", (_DEALT, "number not in self.first or len(holders) != self.shape.num_holders")),
    _vector(SERVER, "server_shares_for_fewer", (_DEALT, "number not in self.first or not set(shares.recipients) <= allowed")),
    _vector(SERVER, "server_shares_altered", ('self._verify(number, shares.signature, "shares", "share", self._hash, self._first_hash, number, *parts)', "")),
    _vector(SERVER, "server_second_upload", (_LATE, "number not in self.second or self.third")),
    _secagg(SERVER, "server_role", "an_upload_after_the_survivors_are_fixed_is_late", (_LATE, "number not in self.second or number in self._uploads")),
    _vector(SERVER, "server_upload_of_int32", ("if any(piece_D.dtype != np.uint32 or piece_D.ndim != 1 for piece_D in pieces):", "if False:")),
    _vector(SERVER, "server_upload_too_short", (_BODY, "len(upload.slots) != SLOTS_BYTES")),
    _vector(SERVER, "server_slots_cut", (_BODY, "sum(map(len, pieces)) != self._grid.length")),
    _vector(SERVER, "server_upload_altered", ('self._verify(number, upload.signature, "masked body", "upload", *bound)', "")),
    _secagg(SERVER, "neighbours", "an_upload_that_masked_within_another_u2_does_not_count", ('self._verify(number, upload.masked, "masked body", "masked", *bound[:4])', "pass")),
    _vector(SERVER, "server_confirmation_of_another", ('self._verify(number, signature, "consistency", "confirm", *bound)', "")),
    _vector(SERVER, "server_confirmation_by_a_dropped_one", ("if number not in self.third:", "if False:")),
    _vector(UNMASK, "server_revealed_twice", (_OWNERS, "not set(revealed.owners) <= allowed")),
    _vector(UNMASK, "server_revealed_of_a_stranger", (_OWNERS, "len(set(revealed.owners)) < len(revealed.owners)")),
    _secagg(UNMASK, "unmasking", "a_corrupted_share_names_its_sender_and_the_round_completes", ("if commit_share(self.session, owner, number, share, of_seed=owner in alive) == expected:", "if True:")),
    _secagg(UNMASK, "unmasking", "a_complaint_about_a_dealer_is_kept", ("for dealer in set(revealed.bad_dealers) & allowed:", "for dealer in ():")),
    _secagg(UNMASK, "unmasking", "slots_that_are_not_the_rosters_tell_of_a_malformed_contribution", ("if tuple(self.slots.tolist()) != expected:", "if False:")),
    _secagg(UNMASK, "unmasking", "a_dealer_of_another_secret_is_named", ("if commit_seed(self.session, owner, seed) != self.sealed[owner].seed_commitment:", "if False:")),
    _secagg(UNMASK, "unmasking", "a_dealer_of_another_secret_is_named", ("if public_key(secret) != self.mask_keys[owner]:", "if False:")),
    _secagg(UNMASK, "unmasking", "too_many_corrupted_shares_are_too_few_good_ones", ("if len(found) < self.threshold:", "if False:")),
)  # fmt: skip

_TOOK_PART = "if not self.took_part(task.run_id):"
_GIVEN_BEFORE = "if read_model_folder(folder, self._config.most_model_bytes) != dict(files):"

DELIVERY_MUTATIONS = (
    _hostile(WORKER, "delivery", "a_model_of_a_run_that_the_partner_took_no_part_in_is_refused", (_TOOK_PART, "if False:")),
    _hostile(RECEIVED, "delivery", "a_model_over_the_policys_size_is_refused", ("if size > most:", "if False:")),
    _hostile(RECEIVED, "delivery", "a_model_of_a_run_that_the_partner_took_no_part_in_is_refused", ("if lineage.run_id != run_id:", "if False:")),
    _hostile(RECEIVED, "delivery", "a_lie_under_the_right_key_is_refused[another base]", ("require_base(lineage, self._pretrained)", "")),
    _hostile(RECEIVED, "delivery", "a_lie_under_the_right_key_is_refused[another layout]", ("if lineage.layout != layout:", "if False:")),
    _hostile(RECEIVED, "delivery", "parameters_of_no_such_model_are_refused_under_the_right_key", ("_, config = load_model(files, lineage, self._pretrained)", "config = self._config.model")),
    _hostile(RECEIVED, "delivery", "another_model_for_the_same_rounds_is_refused_and_one_of_more_rounds_is_kept_beside", (_GIVEN_BEFORE, "if False:")),
    _hostile(LINEAGE, "delivery", "another_key_than_the_pinned_one_is_refused", ("_require_signature(files[LINEAGE], files[SIGNATURE], key)", "")),
    _hostile(LINEAGE, "delivery", "a_file_that_was_altered_is_refused[model.safetensors]", ("if found != facts:", "if False:")),
    _hostile(LINEAGE, "delivery", "a_lie_under_the_right_key_is_refused[an older version]", ("if type(version) is not int or version != LINEAGE_VERSION:", "if False:")),
)  # fmt: skip

_ORACLE = "tests/oracles/test_tuning_oracles.py::test_"
_MOVES = f"{_ORACLE}one_user_moves_the_clipped_sum_by_at_most_the_clip_in_every_mode[lora]"
_EQUAL = f"{_ORACLE}gradients_of_a_user_equal_one_text_at_a_time[lora-encoder]"
_FROZEN = f"{_ORACLE}before_training_the_states_are_those_of_the_frozen_encoder[1-lora-decoder]"

TUNING_MUTATIONS = (
    Mutation(
        "client/training.py", (("if clip is None and model.text is not None:", "if model.text is not None:"),), _MOVES
    ),
    Mutation(
        TUNED,
        (("yield summed_gradient(model, rows, [row_M])[None]", "yield summed_gradient(model, rows, chosen)[None]"),),
        _EQUAL,
    ),
    Mutation(
        TAIL, (("text_BT[:, :, None] == text_BT[:, None, :]", "text_BT[:, :, None] >= -text_BT[:, None, :]"),), _EQUAL
    ),
    Mutation(TAIL, (("seen_BTT = seen_BTT.tril()", ""),), _FROZEN),
)

_ROW = "tests/common/test_history_rows.py::test_{}"
_MIND = "tests/simulations/test_mind.py::test_a_run_over_a_mind_folder_trains_counts_and_evaluates_no_history[{}]"

HISTORY_MUTATIONS = (
    Mutation(
        "client/training.py",
        (("np.flatnonzero(trains_N & (", "np.flatnonzero(("),),
        _ROW.format("no_row_of_history_is_ever_sampled[2-impression]"),
    ),
    Mutation(
        "common/features.py",
        (("return row_M if self.trains_N is None else row_M[self.trains_N[row_M]]", "return row_M"),),
        _ROW.format("no_row_of_history_is_ever_sampled[2-user]"),
    ),
    Mutation(
        "client/userdata.py",
        (("return rows[impressions_N(rows)].reset_index(drop=True)", "return rows"),),
        _MIND.format("server"),
    ),
    Mutation(
        "client/userdata.py",
        (("(side_N & impressions_N(rows) for side_N", "(side_N for side_N"),),
        _MIND.format("partners"),
    ),
)

MUTATIONS = (
    CHECK_MUTATIONS
    + CLIENT_MUTATIONS
    + AT_ONCE_MUTATIONS
    + PARTNER_MUTATIONS
    + LEDGER_MUTATIONS
    + ERASURE_MUTATIONS
    + DELIVERY_MUTATIONS
    + SERVER_MUTATIONS
    + TUNING_MUTATIONS
    + HISTORY_MUTATIONS
)
