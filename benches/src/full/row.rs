//! The rows of the throughput tables: what `fio` does, and what is counted.

/// What a row is counted in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// Operations a second; processor time per million of them.
    Operations,
    /// Megabytes a second; processor time per GiB.
    Megabytes,
}

impl Unit {
    pub fn name(self) -> &'static str {
        match self {
            Self::Operations => "IOPS",
            Self::Megabytes => "MB/s",
        }
    }

    pub fn cost_name(self) -> &'static str {
        match self {
            Self::Operations => "CPU s per million",
            Self::Megabytes => "CPU s per GiB",
        }
    }
}

#[derive(Debug, Clone, Copy)]
pub struct Row {
    /// For `--only`.
    pub id: &'static str,
    pub title: &'static str,
    pub unit: Unit,
    /// More words for `fio`.
    pub arguments: &'static [&'static str],
    /// Its latencies are those of the flushes.
    pub flushes: bool,
}

pub const ROWS: [Row; 9] = [
    operations(
        "write-4k-qd1",
        "4k random write, depth 1",
        &["--rw=randwrite", "--bs=4k", "--iodepth=1"],
    ),
    operations(
        "write-4k-qd32",
        "4k random write, depth 32",
        &["--rw=randwrite", "--bs=4k", "--iodepth=32"],
    ),
    operations(
        "write-4k-qd128",
        "4k random write, depth 128",
        &["--rw=randwrite", "--bs=4k", "--iodepth=128"],
    ),
    megabytes(
        "write-128k",
        "128k sequential write, depth 16",
        &["--rw=write", "--bs=128k", "--iodepth=16"],
    ),
    megabytes(
        "write-1m",
        "1M sequential write, depth 8",
        &["--rw=write", "--bs=1M", "--iodepth=8"],
    ),
    operations(
        "read-4k-qd32",
        "4k random read, depth 32",
        &["--rw=randread", "--bs=4k", "--iodepth=32"],
    ),
    megabytes(
        "read-128k",
        "128k sequential read, depth 16",
        &["--rw=read", "--bs=128k", "--iodepth=16"],
    ),
    Row {
        flushes: true,
        ..operations(
            "write-flush-4k",
            "4k random write, each with a flush",
            &["--rw=randwrite", "--bs=4k", "--iodepth=1", "--fsync=1"],
        )
    },
    operations(
        "mixed-4k",
        "4k random, 70 % read and 30 % write, depth 32",
        &[
            "--rw=randrw",
            "--rwmixread=70",
            "--bs=4k",
            "--iodepth=32",
            // Reads and writes as one, so that they have one set of percentiles.
            "--unified_rw_reporting=1",
        ],
    ),
];

const fn operations(
    id: &'static str,
    title: &'static str,
    arguments: &'static [&'static str],
) -> Row {
    Row {
        id,
        title,
        unit: Unit::Operations,
        arguments,
        flushes: false,
    }
}

const fn megabytes(
    id: &'static str,
    title: &'static str,
    arguments: &'static [&'static str],
) -> Row {
    Row {
        unit: Unit::Megabytes,
        ..operations(id, title, arguments)
    }
}
