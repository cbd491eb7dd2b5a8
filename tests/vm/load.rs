//! Loads on the mounted mirror that check themselves. They go on until the test has done what it wants to do under them.

use anyhow::{Context, Result};
use local_pair::Side::First;

use crate::bed::{Job, TREE};
use crate::servers::Servers;

/// One round of random writes with checksums, which are read back at its end.
const RANDOM_WRITES: &str = "fio --name=load --filename=/mnt/load --size=12m --rw=randwrite --bsrange=4k-64k \
    --ioengine=libaio --direct=1 --iodepth=16 --verify=crc32c --do_verify=1 --verify_fatal=1 --fsync=64 \
    --output-format=json --output=/run/load$round.json >&2";

/// The tree that was built off the mirror, in the memory of the machine.
const RIGHT: &str = "/run/right";

/// On the first server.
#[derive(Debug)]
pub struct Load(Job);

impl Load {
    pub fn random_writes(servers: &Servers) -> Result<Self> {
        Self::start(servers, RANDOM_WRITES)
    }

    /// A source tree is unpacked and compiled, and everything in it compared with one that was built off the mirror.
    pub fn builds(servers: &Servers) -> Result<Self> {
        let once = format!(
            "tar -cf /run/tree.tar -C {TREE} .
             mkdir {RIGHT} && cd {RIGHT} && tar -xf /run/tree.tar && sh build.sh && cat said"
        );
        servers.machine(First).run(&once)?;
        let again = format!(
            "rm -rf /mnt/tree && mkdir /mnt/tree && cd /mnt/tree && tar -xf /run/tree.tar && sync && sh build.sh &&
                sync && diff -r {RIGHT} /mnt/tree"
        );
        Self::start(servers, &again)
    }

    fn start(servers: &Servers, round: &str) -> Result<Self> {
        let rounds = format!(
            "round=0
             while [ ! -e /run/load-ends ]; do
                 round=$((round + 1))
                 {{ {round}
                 }} || exit 1
             done
             echo $round"
        );
        servers.machine(First).start(&rounds).map(Self)
    }

    /// It ends with the round that it is in. Gives the number of rounds.
    pub fn finish(self, servers: &Servers) -> Result<u32> {
        let first = servers.machine(First);
        first.run("touch /run/load-ends")?;
        let ended = first.wait(self.0, "the load")?.done();
        let said = ended.with_context(|| servers.log(First))?;
        let rounds = said.lines().last().and_then(|line| line.parse().ok());
        rounds.context("the load counts its rounds")
    }
}

/// Milliseconds of the longest request in so many rounds of random writes.
pub fn longest_wait_ms(servers: &Servers, rounds: u32) -> Result<f64> {
    let mut longest_ms = 0.0;
    for round in 1..=rounds {
        let text = servers
            .machine(First)
            .run(&format!("cat /run/load{round}.json"))?;
        let start = text.find('{').context("the load reports in JSON")?;
        let report: serde_json::Value = serde_json::from_str(&text[start..])?;
        let job = &report["jobs"][0];
        for kind in ["write", "read"] {
            let nanoseconds = job[kind]["lat_ns"]["max"].as_f64().unwrap_or_default();
            longest_ms = f64::max(longest_ms, nanoseconds / 1e6);
        }
    }
    Ok(longest_ms)
}

/// What the last build left on the mounted mirror is as it should be, read from the disk.
pub fn expect_built(servers: &Servers) -> Result<()> {
    let script = format!("diff -r {RIGHT} /mnt/tree && /mnt/tree/program | cmp - {RIGHT}/said");
    servers.machine(First).run(&script).map(drop)
}
