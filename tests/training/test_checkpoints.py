"""Checkpoints under damage: a flipped bit is found and named, the newest sound state is gone on from, nothing is deleted."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax.training import TrainState, Variables
from kdjax.training.checkpoints import CheckpointError, Checkpoints, Damaged, load_network, save_network
from kdjax.training.manifest import MANIFEST


def state_of(number):
    """A state of every kind of leaf, without a network."""
    values = jax.random.normal(jax.random.key(number), (64,))
    return TrainState(
        step=jnp.asarray(number, jnp.int32),
        params={"student": {"w": values, "half": values.astype(jnp.bfloat16)}, "objective": {}},
        state={"student": {"mean": values + 1}, "objective": {"bank": values.reshape(8, 8), "rows": jnp.arange(8)}},
        opt_state=({"trace": values * 2}, ()),
        ema=None,
        keys={"train": jax.random.key(number), "data": jax.random.key(number + 1)},
    )


def facts_of(best):
    return {"tracks": [{"best": {"step": best}, "window": {"loss": [0.1, 2.0]}}]}


def opened(folder):
    return Checkpoints(folder, {"phase": "student", "teacher": "t"})


@pytest.fixture
def folder(tmp_path):
    """States 1 and 2, of which the second knows a best one, 2, and the first another, 1."""
    checkpoints = opened(tmp_path / "c")
    for step in (1, 2):
        checkpoints.save(state_of(step), step, facts_of(step), best=True)
        checkpoints.save(state_of(step), step, facts_of(step))
    checkpoints.close()
    return tmp_path / "c"


def restored(folder, **options):
    checkpoints = opened(folder)
    try:
        return checkpoints.restore(state_of(0), **options)
    finally:
        checkpoints.close()


def equal(a, b):
    plain = lambda x: jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x
    same = jax.tree.map(lambda x, y: np.array_equal(plain(x), plain(y)) and x.dtype == y.dtype, a, b)
    return all(jax.tree.leaves(same))


def files(place):
    return sorted(path for path in place.rglob("*") if path.is_file())


def flip(path, at):
    raw = bytearray(path.read_bytes())
    raw[min(int(at * len(raw)), len(raw) - 1)] ^= 1
    path.write_bytes(bytes(raw))


def test_a_state_comes_back_bit_for_bit(folder):
    state, facts = restored(folder)
    assert equal(state, state_of(2)) and facts == facts_of(2)


@pytest.mark.parametrize("harm", [flip, lambda path, at: path.unlink()])
def test_damage_to_any_file_is_found_and_named(harm, folder, capsys):
    """And the state before is gone on from; the damaged one is kept."""
    names = [path.relative_to(folder / "last/2") for path in files(folder / "last/2") if path.stat().st_size]
    assert len(names) > 8
    for i, name in enumerate(names):
        path = folder / "last/2" / name
        whole = path.read_bytes()
        harm(path, (0.0, 0.5, 0.99)[i % 3])
        capsys.readouterr()
        state, facts = restored(folder)
        assert equal(state, state_of(1)) and facts == facts_of(1), name
        said = capsys.readouterr().err
        assert said.count("\n") == 1 and "last/2 is damaged" in said and "goes on from step 1" in said
        assert path.name in said or path.name == MANIFEST
        aside = folder / "aside/last-2"
        assert aside.is_dir() and len(files(aside)) >= len(names) - 1
        (aside / name).write_bytes(whole)
        aside.rename(folder / "last/2")
    assert equal(restored(folder)[0], state_of(2))


@pytest.mark.parametrize("harm", [lambda p: p.unlink(), lambda p: p.write_bytes(b""), lambda p: p.write_bytes(b"[1]")])
def test_a_manifest_that_is_gone_or_nonsense_is_damage(harm, folder):
    harm(folder / "last/2" / MANIFEST)
    assert equal(restored(folder)[0], state_of(1))


def test_a_state_from_before_there_were_manifests_is_read_and_said(folder, capsys):
    place = folder / "last/2"
    (place / MANIFEST).unlink()
    meta = next(path for path in files(place / "meta") if b'"sealed"' in path.read_bytes())
    found = json.loads(meta.read_text())
    del found["sealed"]
    meta.write_text(json.dumps(found))
    assert equal(restored(folder)[0], state_of(2))
    assert "last/2 was written before there were checksums" in capsys.readouterr().err


def test_where_none_is_sound_nothing_is_touched(folder):
    for step in "12":
        flip(max(files(folder / "last" / step), key=lambda p: p.stat().st_size), 0.5)
    with pytest.raises(
        CheckpointError,
        match=r"last/2 is damaged: .*; there is no sound one before it; move .* elsewhere to train this",
    ):
        restored(folder)
    assert sorted(p.name for p in (folder / "last").iterdir()) == ["1", "2"]


def test_a_best_state_that_is_gone_is_missed_where_it_is_wanted(folder, tmp_path, capsys):
    """The state before knows another one, from which the lost one comes again."""
    (folder / "best/2").rename(tmp_path / "elsewhere")
    assert equal(restored(folder)[0], state_of(2)), "not wanted"
    checkpoints = opened(folder)
    with pytest.raises(Damaged, match=r"The best state, .*best/2, is missing"):
        checkpoints.check_best(2)
    checkpoints.close()
    assert equal(restored(folder, keeps_best=True)[0], state_of(1))
    assert "best/2, is missing; it is kept as" in capsys.readouterr().err
    flip(max(files(folder / "best/1"), key=lambda p: p.stat().st_size), 0.5)
    with pytest.raises(
        CheckpointError,
        match=r"best/1 is damaged: .*, or go on without the best state by --resume --phases.student.keep last",
    ):
        restored(folder, keeps_best=True)


def test_the_best_states_that_are_known_of_stay(folder):
    checkpoints = opened(folder)
    checkpoints.restore(state_of(0))
    for step in (3, 4, 5):  # better ones, before another last state is written
        checkpoints.save(state_of(step), step, facts_of(step), best=True)
    checkpoints.wait()
    assert {int(p.name) for p in (folder / "best").iterdir()} == {1, 2, 5}
    checkpoints.save(state_of(6), 6, facts_of(5))
    checkpoints.save(state_of(7), 7, facts_of(5))
    checkpoints.save(state_of(7), 7, facts_of(7), best=True)
    checkpoints.close()
    assert {int(p.name) for p in (folder / "best").iterdir()} == {5, 7}
    assert {int(p.name) for p in (folder / "last").iterdir()} == {6, 7}


def test_a_flipped_bit_in_a_finished_network_is_named(tmp_path):
    network = Variables({"w": jnp.arange(2000.0)}, {"mean": jnp.ones(3)})
    save_network(tmp_path, network, {"phase": "student"})
    assert equal(load_network(tmp_path, network)[0], network)
    for path in [p for p in files(tmp_path / "weights") if p.stat().st_size]:
        whole = path.read_bytes()
        flip(path, 0.7)
        with pytest.raises(CheckpointError, match=r"network in .* is damaged: weights.*; train that phase again"):
            load_network(tmp_path, network)
        path.write_bytes(whole)
    load_network(tmp_path, network)
