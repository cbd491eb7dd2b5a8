//! A load on the mounted mirror that checks itself and goes on until the test has done what it wants to do under it.

use anyhow::{Context, Result};
use local_pair::Side::First;

use crate::bed::Job;
use crate::servers::Servers;

/// Rounds of random writes with checksums, each read back at its end.
const ROUNDS: &str = "round=0
    while [ ! -e /run/load-ends ]; do
        round=$((round + 1))
        fio --name=load --filename=/mnt/load --size=12m --rw=randwrite --bsrange=4k-64k --ioengine=libaio \
            --direct=1 --iodepth=16 --verify=crc32c --do_verify=1 --verify_fatal=1 --fsync=64 --output-format=json \
            --output=/run/load$round.json >&2 || exit 1
    done
    echo $round";

/// On the first server.
#[derive(Debug)]
pub struct Load(Job);

impl Load {
    pub fn start(servers: &Servers) -> Result<Self> {
        servers.machine(First).start(ROUNDS).map(Self)
    }

    /// It ends with the round that it is in. Gives milliseconds of the longest request that it waited for.
    pub fn finish(self, servers: &Servers) -> Result<f64> {
        let first = servers.machine(First);
        first.run("touch /run/load-ends")?;
        let ended = first.wait(self.0, "the load")?.done();
        let said = ended.with_context(|| servers.log(First))?;
        let rounds = said.lines().last().and_then(|line| line.parse().ok());
        let mut longest_ms = 0.0;
        for round in 1..=rounds.context("the load counts its rounds")? {
            let text = first.run(&format!("cat /run/load{round}.json"))?;
            longest_ms = f64::max(longest_ms, longest_wait_ms(&text)?);
        }
        Ok(longest_ms)
    }
}

fn longest_wait_ms(report: &str) -> Result<f64> {
    let start = report.find('{').context("the load reports in JSON")?;
    let report: serde_json::Value = serde_json::from_str(&report[start..])?;
    let job = &report["jobs"][0];
    let longest = ["write", "read"].map(|kind| job[kind]["lat_ns"]["max"].as_f64());
    Ok(longest.into_iter().flatten().fold(0.0, f64::max) / 1e6)
}
