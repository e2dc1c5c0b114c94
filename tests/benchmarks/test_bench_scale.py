"""The simulation compared with runs computed by hand, and with faults that must break its promises."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import bench_scale as module
import pytest
from bench_scale import OPTIONS, simulate
from format_scale import format_simulation
from hypothesis import given, settings
from hypothesis import strategies as st
from scenario import Losses, Resume, Simulation, SimulationSettings, resume_cost
from support.cli import assert_one_line_error

from alphafuse.errors import ClusterError

Script = Callable[..., tuple[int, str, str]]

# one node of two cores; a step is 10 clips: 5 s to decode, 1 s to embed; a commit takes 2 s; nothing goes wrong
PLAIN = SimulationSettings(
    clips=30,
    nodes=1,
    roots=1,
    cores=2,
    block_clips=5,
    decode_seconds=1.0,
    models_per_second=10.0,
    block_seconds=1e-9,
    gather_seconds=2.0,
    put_seconds=0.0,
    answer_seconds=0.0,
    jitter=0.0,
    restart_seconds=10.0,
    node_return_seconds=1000.0,
).without_failures()


def losses(found: Simulation, kind: str) -> Losses:
    return next(loss for loss in found.losses if loss.kind == kind)


# by hand


def test_three_steps_take_three_decodings_an_embedding_and_a_commit() -> None:
    found = simulate(PLAIN)
    assert found.seconds == pytest.approx(3 * 5 + 1 + 2, abs=1e-6)
    assert (found.shards, found.most_clips, found.lost_clips, found.commits) == (1, 30, 0, 1)
    assert found.decode_busy == pytest.approx(15 / 18) and found.models_busy == pytest.approx(3 / 18)
    assert found.ideal_seconds == found.seconds and found.promises_held


def test_a_shard_is_started_every_flush_seconds_and_the_last_at_once() -> None:
    found = simulate(replace(PLAIN, flush_seconds=4.0))  # embedded at 6, 11 and 16: started at 10, 15 and 16
    assert found.seconds == pytest.approx(18, abs=1e-6)
    assert (found.shards, found.least_clips, found.most_clips) == (3, 10, 10)


def test_a_shard_is_started_when_its_embeddings_are_64_mb() -> None:
    found = simulate(replace(PLAIN, clips=50, clip_bytes=4 * 2**20))  # 10 clips: 40 MB
    assert (found.shards, found.most_clips, found.least_clips) == (3, 20, 10)


def test_slow_models_hold_decoding_back() -> None:
    slow = replace(PLAIN, clips=80, decode_seconds=0.2, models_per_second=2.5)  # 1 s to decode a step, 4 to embed it
    found = simulate(slow)
    assert found.seconds == pytest.approx(1 + 8 * 4 + 2, abs=1e-6)
    # a lost node takes a step in its models, one with its decoder, which waits, and between them those that may wait
    lost = simulate(replace(slow, clips=400, nodes=2, schedule=((30.0, "node lost", 1),)))
    assert losses(lost, "node lost").clips == 10 * (1 + slow.waiting_steps + 1) + 10 * 7  # 7 embedded since the start


def test_nodes_wait_for_a_slow_driver() -> None:
    found = simulate(replace(PLAIN, block_seconds=1.0))  # two blocks a step: 2 s before each 5 s of decoding
    assert found.seconds == pytest.approx(3 * 7 + 1 + 2)
    assert found.driver_busy == pytest.approx(6 / 24) and found.blocks_per_second == pytest.approx(6 / 24)


def test_the_clips_of_a_lost_node_are_done_by_others_and_counted() -> None:
    found = simulate(replace(PLAIN, clips=40, nodes=2, schedule=((7.0, "node lost", 1),)))
    # node 0: steps at 0..5, 5..10, then the two of node 1: one that it had embedded (at 6), one 2 s in the decoder
    assert found.seconds == pytest.approx(20 + 1 + 2, abs=1e-6)
    cost = losses(found, "node lost")
    assert (cost.count, cost.clips, cost.most_clips) == (1, 20, 20)
    assert cost.core_hours * 3600 == pytest.approx(10 + 2 * 2, abs=1e-6)
    assert cost.device_hours * 3600 == pytest.approx(1)
    assert found.promises_held and found.redone_though_stored == 0


def test_flushed_embeddings_survive_a_killed_driver_and_the_rest_is_found_by_listing() -> None:
    killed = replace(PLAIN, flush_seconds=4.0, schedule=((13.0, "driver killed", 0),))
    found = simulate(killed)  # the first step is stored at 12; the second is held, the third 3 s in the decoder
    cost = losses(found, "driver killed")
    assert (cost.count, cost.clips) == (1, 20) and cost.core_hours * 3600 == pytest.approx(10 + 2 * 3, abs=1e-6)
    assert found.resumes == (resume_cost(1, killed),) and found.resumes[0].seconds == pytest.approx(0.1 + 0.1)
    assert found.seconds == pytest.approx(13 + 10 + 0.2 + 2 * 5 + 1 + 2, abs=1e-6)
    assert found.shards == 3 and found.promises_held and found.redone_though_stored == 0


def test_listing_takes_a_request_for_every_thousand_shards_and_one_shard_after_the_other() -> None:
    run = replace(PLAIN, list_seconds=0.5, header_seconds=0.01)
    assert resume_cost(0, run).seconds == 0
    assert resume_cost(1000, run) == Resume(1000, 1, 0.5 + 10)
    assert resume_cost(1001, run).pages == 2


# faults that break the promises


def test_attempts_that_do_not_agree_on_a_name_store_clips_twice() -> None:
    doubtful = replace(PLAIN, clips=3000, flush_seconds=4.0, put_seconds=0.1, lost_answers=0.3)
    found = simulate(doubtful)
    assert found.commits > found.shards and losses(found, "answer lost").count == found.commits - found.shards
    assert found.rows_doubled == 0 and found.promises_held
    broken = simulate(replace(doubtful, idempotent=False))
    assert broken.rows_doubled > 0 and not broken.promises_held
    assert "stored twice: 0 clips, promised: 0: held" in format_simulation(found)
    assert "promised: 0: BROKEN" in format_simulation(broken)


def test_a_driver_restarted_before_the_commits_of_the_previous_one_end_stores_clips_twice() -> None:
    # a commit of the first step gathers from 10 to 12, and its shard appears 2 s later at the earliest
    killed = replace(
        PLAIN, flush_seconds=4.0, put_seconds=4.0, orphan_seconds=100.0, schedule=((12.5, "driver killed", 0),)
    )
    assert simulate(replace(killed, restart_seconds=200.0)).promises_held
    early = simulate(replace(killed, restart_seconds=0.0))
    assert early.rows_doubled == 10 and early.clips_missing == 0
    ended = simulate(replace(killed, restart_seconds=0.0, orphan_seconds=0.0))  # Ray ends them with the driver
    assert ended.promises_held


def test_a_commit_that_lost_its_node_or_its_embeddings_is_tried_again_under_the_same_name() -> None:
    two = replace(PLAIN, clips=40, nodes=2, flush_seconds=4.0, gather_seconds=3.0, put_seconds=0.0)
    for moment in (10.5, 12.5):  # while the first commit, of a step of each node, gathers
        for node in (0, 1):
            found = simulate(replace(two, schedule=((moment, "node lost", node),)))
            assert found.promises_held and found.commits >= found.shards
    # no node is left until others start
    all_gone = ((10.5, "node lost", 0), (10.5, "node lost", 1))
    found = simulate(replace(two, node_return_seconds=50.0, schedule=all_gone))
    assert found.promises_held and found.seconds > 60


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    nodes=st.integers(1, 12),
    clips=st.integers(1, 30_000),
    flush_seconds=st.sampled_from([0.0, 2.0, 30.0]),
    commits_at_once=st.sampled_from([1, 32]),
    commits_read_headers=st.booleans(),
)
def test_every_clip_is_stored_once_whatever_fails(seed: int, nodes: int, clips: int, **others: Any) -> None:
    roots = min(1 + seed % 3, nodes, clips)
    found = simulate(
        SimulationSettings(
            seed=seed,
            nodes=nodes,
            clips=clips,
            roots=roots,
            node_hours=0.02 * nodes,
            preemption_hours=0.1,
            preempted=0.5,
            driver_hours=0.1,
            restart_seconds=10.0,
            node_return_seconds=20.0,
            crashes=1e-3,
            hung=1e-4,
            lost_answers=0.2,
            most_steps=200,
            **others,
        )
    )
    assert found.promises_held
    assert found.commits >= 1 and found.shards <= found.commits


# at size


def test_a_thousand_nodes_are_simulated_and_the_seed_determines_the_result() -> None:
    thousand = SimulationSettings(
        clips=4_000_000, nodes=1000, node_hours=1.0, preemption_hours=0.03, driver_hours=0.5, most_steps=5000
    )
    found = simulate(thousand)
    assert found == simulate(thousand) and found != simulate(replace(thousand, seed=1))
    assert found.promises_held and found.lost_clips > 0 and losses(found, "preemption").count >= 1
    # a node may hold one step in the decoder, waiting steps, one step in the models, and unflushed embeddings
    holds = thousand.step_clips * (2 + thousand.waiting_steps) + thousand.models_per_second * 60
    assert losses(found, "node lost").most_clips <= holds
    assert found.seconds > found.ideal_seconds > 4_000_000 / 74_000


def test_a_run_that_fails_faster_than_it_works_is_an_error() -> None:
    hopeless = replace(PLAIN, node_hours=0.0003, node_return_seconds=1.0)  # a node lives for a second, a step takes six
    with pytest.raises(ClusterError, match=r"does not finish: 0 of 30 clips are stored after \d+ h"):
        simulate(hopeless)


def test_invalid_numbers_are_one_line_errors() -> None:
    for name, value in (
        ("clips", 0),
        ("nodes", -1),
        ("models_per_second", float("nan")),
        ("node_hours", -1.0),
        ("flush_seconds", float("inf")),
        ("lost_answers", 1.0),
        ("roots", 5000),
    ):
        with pytest.raises(ClusterError, match=name):
            SimulationSettings(**{name: value})  # type: ignore[arg-type]


def test_without_simpy_the_error_names_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "simpy", None)
    monkeypatch.delitem(sys.modules, "cluster", raising=False)
    with pytest.raises(ClusterError, match=r"needs simpy .*pip install 'alphafuse\[dev\]'"):
        simulate(PLAIN)


# on the command line

SMALL = ("--clips", 100_000, "--nodes", 10, "--roots", 2, "--node-hours", 0.1)


def test_the_command_prints_costs_and_promises(script: Script) -> None:
    code, out, _ = script(module.main, *SMALL)
    assert code == 0 and "simulated: 100,000 clips on 10 nodes, 2 roots" in out
    assert "stored twice: 0 clips, promised: 0: held" in out and "node lost" in out
    code, out, _ = script(module.main, *SMALL, "--json")
    content = json.loads(out)
    assert content["promises_held"] is True and content["settings"]["nodes"] == 10
    assert {field.name for field in fields(Simulation)} | {"lost_clips", "promises_held"} == set(content)
    assert_one_line_error(script(module.main, "--nodes", 0), "nodes must be above 0, not 0")


def test_a_broken_promise_is_exit_code_1(script: Script, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = replace(simulate(PLAIN), rows_doubled=7)
    monkeypatch.setattr(module, "simulate", lambda settings: broken)
    code, out, _ = script(module.main, *SMALL)
    assert code == 1 and "stored twice: 7 clips, promised: 0: BROKEN" in out


def test_every_option_is_a_setting() -> None:
    assert set(OPTIONS) <= {field.name for field in fields(SimulationSettings)}
