from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest

from milepost.core.errors import InvalidCallError, StorageError
from milepost.environment.exchange import FolderExchange, StoreExchange, find_exchange


@pytest.fixture(autouse=True)
def _own_temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


def test_what_one_leaves_the_other_finds(tmp_path: Path) -> None:
    here, there = FolderExchange(tmp_path / "x"), FolderExchange(tmp_path / "x")
    assert here.get("run/1") is None
    there.put("run/1", b"a")
    there.put("../run", b"b")
    assert (here.get("run/1"), here.get("../run")) == (b"a", b"b")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x"]


def test_nobody_else_can_enter_the_folder(tmp_path: Path) -> None:
    FolderExchange(tmp_path / "x")
    assert (tmp_path / "x").stat().st_mode & 0o777 == 0o700


def test_a_link_in_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "x").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StorageError, match="somebody else"):
        FolderExchange(tmp_path / "x")


def test_ranks_of_several_hosts_are_told_to_make_a_group_first() -> None:
    with pytest.raises(InvalidCallError, match="init_process_group"):
        find_exchange({"WORLD_SIZE": "16", "LOCAL_WORLD_SIZE": "8"})


def test_a_restart_by_torchrun_meets_in_a_folder_of_its_own(tmp_path: Path) -> None:
    find_exchange({"WORLD_SIZE": "2"}).put("a", b"")
    assert find_exchange({"WORLD_SIZE": "2"}).get("a") == b""
    assert find_exchange({"WORLD_SIZE": "2", "TORCHELASTIC_RESTART_COUNT": "1"}).get("a") is None
    assert len(list(tmp_path.iterdir())) == 2


def test_folders_of_launchers_that_are_gone_are_removed(tmp_path: Path) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    stale = tmp_path / f"milepost-{os.getuid()}-{gone.pid}-123-0"
    stale.mkdir()
    (stale / "a").write_text("")
    mine = FolderExchange(tmp_path / "milepost-notes")
    find_exchange({"WORLD_SIZE": "2"})
    assert not stale.exists()
    assert mine.get("a") is None
    assert (tmp_path / "milepost-notes").is_dir()


def test_a_training_that_waits_on_the_store_does_not_make_us_wait() -> None:
    pytest.importorskip("torch")
    from torch.distributed import PrefixStore, TCPStore

    store = PrefixStore("group", TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False))
    exchange = StoreExchange(store)
    waiting = threading.Thread(target=store.get, args=("a key that comes last",))
    waiting.start()
    exchange.put("a", b"1")
    assert (exchange.get("a"), exchange.get("b")) == (b"1", None)
    assert waiting.is_alive()
    StoreExchange(store)._store.set("a key that comes last", b"")
    waiting.join()
