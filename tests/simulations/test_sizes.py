"""Sizes before a run: users, trained numbers, who takes part how often; and none of it read off a real log."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from common.config import Config, parse_config
from common.errors import ConfigError, PretrainedError
from common.features import dense_names
from common.model.click_model import build_model
from common.pretrained import locate
from common.runfolder import partner_name
from server.cohort import draw_cohort
from simulations.partners import build_partners
from simulations.prepare import prepare
from simulations.sizes import busiest, declared, declared_users, trained_parameters
from simulations.sources import load_source


def config_for(encoder: Path | str, **tables: dict[str, Any]) -> Config:
    table: dict[str, Any] = {
        "data": {
            "source": "generated",
            "partners": 3,
            "generator": {"users": 60, "items": 20, "impressions_per_user": 6},
        },
        "model": {"encoder": f"path:{encoder}", "width": 4, "hidden": 5},
    }
    return parse_config({name: table.get(name, {}) | tables.get(name, {}) for name in {**table, **tables}})


@pytest.mark.parametrize(("purchase_rate", "heads"), [(0.15, 2), (0.0, 1)])
@pytest.mark.parametrize("model", [{}, {"width": 7, "hidden": 3, "context_buckets": 4}])
def test_the_model_that_is_built_has_as_many_parameters(
    tiny_encoder: Path, model: dict[str, int], purchase_rate: float, heads: int
) -> None:
    data = {"generator": {"users": 60, "purchase_rate": purchase_rate}, "source": "generated", "partners": 3}
    config = config_for(tiny_encoder, model=model, data=data)
    width = locate(config.model.encoder).width
    built = build_model(config.model, width, heads, seed=0)
    assert trained_parameters(config) == sum(parameter.numel() for parameter in built.parameters())
    assert built.wide.in_features == len(dense_names(config.model))


def test_an_encoder_that_is_not_there_is_named_with_the_way_out(tmp_path: Path) -> None:
    with pytest.raises(PretrainedError, match="--parameters N"):
        trained_parameters(config_for(tmp_path / "nowhere"))


def test_users_are_those_that_a_simulations_partners_would_declare(tiny_encoder: Path, tmp_path: Path) -> None:
    config = config_for(tiny_encoder)
    users, source = declared_users(config, tmp_path)
    logs = build_partners(load_source(config.data), config.data)
    assert users == [declared(rows["user"].nunique()) for rows in logs.training]
    assert "simulation" in source


def test_in_a_run_folder_users_are_those_that_its_partners_declared(tiny_encoder: Path, tmp_path: Path) -> None:
    from common.runfolder import RunFolder

    config = config_for(tiny_encoder)
    prepare(config, RunFolder(tmp_path))
    for number, users in enumerate((70, 80, 90)):
        path = RunFolder(tmp_path).partner(number) / "partner.toml"
        lines = path.read_text().splitlines()
        changed = [f"declared_users = {users}" if line.startswith("declared_users") else line for line in lines]
        path.write_text("\n".join(changed))
    assert declared_users(config, tmp_path)[0] == [70, 80, 90]


def test_many_generated_users_are_counted_and_not_made(tiny_encoder: Path, tmp_path: Path) -> None:
    data = {"source": "generated", "partners": 4, "generator": {"users": 2_000_000}}
    assert declared_users(config_for(tiny_encoder, data=data), tmp_path)[0] == [500_000] * 4
    by_user = config_for(tiny_encoder, data={**data, "split": "user", "test_share": 0.2})
    assert declared_users(by_user, tmp_path)[0] == [400_000] * 4


@pytest.mark.parametrize(
    "data",
    [
        {"source": "files", "path": "clicks.csv", "card": "card.toml"},
        {"source": "movietweetings", "path": "folder"},
        {"source": "generated", "partners": 3, "partition": "skew", "generator": {"users": 100_000}},
    ],
)
def test_a_log_is_never_read_for_its_size(tiny_encoder: Path, tmp_path: Path, data: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="--users N"):
        declared_users(config_for(tiny_encoder, data=data), tmp_path)


def test_the_busiest_partner_is_counted_over_the_cohorts_that_will_be_drawn(tiny_encoder: Path) -> None:
    config = config_for(
        tiny_encoder,
        data={"source": "generated", "partners": 9},
        round={"num_rounds": 12, "partners_per_round": 4, "seed": 3},
    )
    names = [partner_name(number) for number in range(9)]
    drawn = Counter(name for number in range(1, 13) for name in draw_cohort(names, 4, 3, number))
    assert busiest(config)[-1] == max(drawn.values())
    assert len(busiest(config)) == 13
    assert busiest(config_for(tiny_encoder)) == tuple(range(11))
