//! One short run of `fio` on a contender, with what its servers used of the processors meanwhile.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::contender::Contender;
use super::row::{Row, Unit};
use crate::fio;
use crate::process;

/// Beyond the run itself: the start and the end of `fio`, on a machine with other work.
const MARGIN: Duration = Duration::from_secs(60);

/// What one run reached.
#[derive(Debug, Clone, Copy)]
pub struct Sample {
    pub operations_per_s: f64,
    pub bytes_per_s: f64,
    pub p50_us: f64,
    pub p99_us: f64,
    pub p999_us: f64,
    /// Processor seconds of the servers: per million operations or per GiB, as the row counts.
    pub cost: f64,
}

impl Sample {
    pub fn figure(&self, unit: Unit) -> f64 {
        match unit {
            Unit::Operations => self.operations_per_s,
            Unit::Megabytes => self.bytes_per_s / 1e6,
        }
    }

    /// Each figure by itself, of all runs of one row.
    pub fn median(samples: &[Self]) -> Self {
        let of = |figure: fn(&Self) -> f64| median(samples.iter().map(figure));
        Self {
            operations_per_s: of(|sample| sample.operations_per_s),
            bytes_per_s: of(|sample| sample.bytes_per_s),
            p50_us: of(|sample| sample.p50_us),
            p99_us: of(|sample| sample.p99_us),
            p999_us: of(|sample| sample.p999_us),
            cost: of(|sample| sample.cost),
        }
    }
}

/// The middle one, or the mean of the two in the middle; zero of nothing.
pub fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => 0.0,
        count if count.is_multiple_of(2) => (values[count / 2 - 1] + values[count / 2]) / 2.0,
        count => values[count / 2],
    }
}

/// Runs a row for `length`.
pub fn run(contender: &Contender, row: &Row, length: Duration) -> Result<Sample> {
    let runtime = format!("--runtime={}ms", length.as_millis());
    let mut words = vec!["--time_based", &runtime];
    words.extend(row.arguments);
    let before = contender.processor_seconds()?;
    let limit = length + MARGIN;
    let report = fio::report(&contender.target().fio_words(), limit, &words)?;
    let servers = contender.processor_seconds()? - before;
    sample(&report, row, servers, contender)
}

/// Writes all of the target once, so that no row meets space that was never written. In small requests, as they leave a
/// server as it was: from the first request of 1 MiB on, the C library no longer gives memory back to the kernel after each
/// large one, and QEMU, which takes memory for each, is more than twice as fast with 128 KiB then.
pub fn fill(contender: &Contender) -> Result<()> {
    let words = ["--rw=write", "--bs=64k", "--iodepth=16"];
    fio::report(&contender.target().fio_words(), MARGIN, &words).map(drop)
}

fn sample(report: &Value, row: &Row, servers_s: f64, contender: &Contender) -> Result<Sample> {
    let job = &report["jobs"][0];
    let did = |way: &&&str| {
        job[**way]["total_ios"]
            .as_u64()
            .is_some_and(|count| count > 0)
    };
    let Some(way) = ["mixed", "write", "read"].iter().find(did) else {
        bail!("{} did nothing on {}", row.id, contender.name);
    };
    let io = &job[*way];
    let number = |value: &Value, what: &str| {
        value
            .as_f64()
            .with_context(|| format!("fio says nothing of {what} in {job}"))
    };
    let took = match row.flushes {
        true => &job["sync"]["lat_ns"],
        false => &io["clat_ns"],
    };
    let percentile =
        |which: &str| -> Result<f64> { Ok(number(&took["percentile"][which], which)? / 1e3) };
    let operations = number(&io["total_ios"], "operations")?;
    let bytes = number(&io["io_bytes"], "bytes")?;
    // Without a server, the work is done in the client.
    let processor_s = match contender.has_servers() {
        true => servers_s,
        false => {
            let percent =
                number(&job["usr_cpu"], "its time")? + number(&job["sys_cpu"], "its time")?;
            percent / 100.0 * number(&job["job_runtime"], "its run time")? / 1e3
        }
    };
    let amount = match row.unit {
        Unit::Operations => operations / 1e6,
        Unit::Megabytes => bytes / process::GIB,
    };
    Ok(Sample {
        operations_per_s: number(&io["iops"], "operations a second")?,
        bytes_per_s: number(&io["bw_bytes"], "bytes a second")?,
        p50_us: percentile("50.000000")?,
        p99_us: percentile("99.000000")?,
        p999_us: percentile("99.900000")?,
        cost: processor_s / amount,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_median_is_not_moved_by_one_run_that_went_wrong() {
        assert_eq!(median([3.0, 100.0, 2.0].into_iter()), 3.0);
        assert_eq!(median([1.0, 4.0, 2.0, 100.0].into_iter()), 3.0);
        assert_eq!(median(std::iter::empty()), 0.0);
    }
}
