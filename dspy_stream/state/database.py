"""How the database of a state folder is opened: its settings, and what they are for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from rocksdict import (
    AccessType,
    BlockBasedOptions,
    Cache,
    DBCompressionType,
    DBRecoveryMode,
    Options,
    Rdict,
)

from dspy_stream.errors import StateError
from dspy_stream.state.batch import FAMILIES
from dspy_stream.state.faults import classify

__all__ = ["assert_recovery_mode", "close_quietly", "connect", "database_options", "family_names"]

_RECOVERY_LINE: Final = "wal_recovery_mode=kTolerateCorruptedTailRecords"


def close_quietly(part: Rdict) -> None:
    """Close a database or a family of one."""
    try:
        part.close()
    except Exception:  # noqa: BLE001, S110 - bare in the binding; a writer that failed says so again
        pass


def database_options(*, create: bool, open_files: int = 128) -> Options:
    """How a database of ours is opened."""
    table = BlockBasedOptions()
    table.set_block_cache(Cache(8 << 20))
    table.set_bloom_filter(10, False)
    # Indexes and filters stay outside the cache, with the open files: looking them up there, piece by
    # piece, took a third of a read. They are about 0.6 MB a file of 64 MB, and few files are open.
    options = Options(raw_mode=True)
    options.set_block_based_table_factory(table)
    options.create_if_missing(create)
    options.create_missing_column_families(create)
    # The default forgets everything behind a damaged record in the log without a word.
    options.set_wal_recovery_mode(DBRecoveryMode.tolerate_corrupted_tail_records())
    options.set_paranoid_checks(True)
    options.set_compression_type(DBCompressionType.lz4())
    options.set_write_buffer_size(6 << 20)
    options.set_max_write_buffer_number(2)
    # Most of what is looked up is not there: without a filter each look walks the whole write buffer.
    options.set_memtable_whole_key_filtering(True)
    options.set_memtable_prefix_bloom_ratio(0.02)
    options.set_db_write_buffer_size(12 << 20)
    options.set_max_total_wal_size(32 << 20)
    options.set_max_background_jobs(2)
    options.set_max_open_files(open_files)
    options.set_keep_log_file_num(2)
    options.set_max_log_file_size(1 << 20)
    options.set_stats_dump_period_sec(0)
    options.set_stats_persist_period_sec(0)
    return options


def family_names(folder: Path) -> tuple[str, ...]:
    """The families that the database of a state folder has, apart from its default one.

    Raises:
        StateError: it cannot be looked at.
    """
    try:
        return tuple(name for name in Rdict.list_cf(str(folder / "db")) if name != "default")
    except Exception as error:  # the binding raises nothing more exact; so below
        raise classify(error, folder, "opening") from error


def connect(folder: Path, options: Options, access: AccessType, names: Sequence[str] = FAMILIES) -> Rdict:
    """Open the database of a state folder.

    Raises:
        StateError: it cannot be opened; of which kind, the database's own words say.
    """
    # One options object for all families: they share its block cache.
    try:
        return Rdict(str(folder / "db"), options, dict.fromkeys(names, options), access)
    except Exception as error:
        raise classify(error, folder, "opening") from error


def assert_recovery_mode(database: Path) -> None:
    """See that a torn end is all that may be missing of a log.

    Raises:
        StateError: the database did not take the setting.
    """
    written = max(database.glob("OPTIONS-*"), default=None)
    if written is None or _RECOVERY_LINE not in written.read_text():
        raise StateError(f"the database in {database} did not take its recovery mode; do not use this build")
