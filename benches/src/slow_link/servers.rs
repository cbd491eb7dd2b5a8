//! Two servers in network namespaces with one link between them, and pairs whose sides are in the one and the other.
//! When it is dropped, also by an error, nothing of it is left; when the whole program is killed, the kernel ends
//! what it started, and namespaces go with the last process in them; only the files of the pairs stay.

use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use local_cluster::{Machine, Net, Network};
use local_pair::{Pair, PairOptions, Programs, Side};

use super::delay::DelayProxy;

const NET: Net = Net::Interconnect;
/// Of the first pair; each further one has the next ten.
const PORT: u16 = 29051;
const NBD_PORT: u16 = 10809;

/// What lies between the two nodes of a pair.
#[derive(Debug, Clone, Copy)]
pub struct Link {
    pub title: &'static str,
    /// What each direction carries; as much as the machine can without it.
    pub mbit: Option<u32>,
    pub each_way: Duration,
}

#[derive(Debug)]
pub struct Servers {
    link: Link,
    machines: [Machine; 2],
    _network: Network,
    pairs: u16,
}

/// A pair on that link.
#[derive(Debug)]
pub struct Apart {
    // Before the proxy, which would be missed.
    pub pair: Pair,
    _proxy: Option<DelayProxy>,
}

impl Servers {
    pub fn boot(link: Link) -> Result<Self> {
        let mut network = Network::new()?;
        let machines = [Machine::boot()?, Machine::boot()?];
        for (side, machine) in Side::BOTH.into_iter().zip(&machines) {
            network.plug(NET, host(side), machine, true)?;
            NET.shape(machine, link.mbit)?;
        }
        Ok(Self {
            link,
            machines,
            _network: network,
            pairs: 0,
        })
    }

    /// In sync, with the first side as primary.
    pub fn pair(&mut self, options: &PairOptions) -> Result<Apart> {
        let ports = 10 * self.pairs;
        self.pairs += 1;
        let replication = |side, port| format!("{}:{port}", NET.address(host(side)));
        // Over loopback, because it would need TLS elsewhere.
        let nbd = |side| format!("127.0.0.{}:{}", host(side), NBD_PORT + ports);
        let addresses = Side::BOTH.map(|side| (replication(side, PORT + ports), nbd(side)));
        let target = addresses[Side::Second.index()].0.clone();
        let mut pair = Pair::create_at(Programs::fresh()?, options, addresses)?;
        for side in Side::BOTH {
            let process = self.machines[side.index()].init().to_string();
            pair.set_wrapper(side, &["nsenter", "-t", &process, "-n", "--"]);
        }
        let mut proxy = None;
        if !self.link.each_way.is_zero() {
            let by = replication(Side::Second, PORT + ports + 1);
            proxy = Some(self.delay(&by, &target)?);
            lead_by(&mut pair, &target, &by)?;
        }
        pair.bring_up()?;
        pair.promote_first()?;
        Ok(Apart {
            pair,
            _proxy: proxy,
        })
    }

    /// A proxy on the second server.
    fn delay(&self, address: &str, target: &str) -> Result<DelayProxy> {
        let process = self.machines[Side::Second.index()].init();
        let namespace = PathBuf::from(format!("/proc/{process}/ns/net"));
        let parsed = |text: &str| text.parse::<SocketAddr>().context("an address of ours");
        DelayProxy::start(
            Some(namespace),
            parsed(address)?,
            parsed(target)?,
            self.link.each_way,
        )
    }
}

/// The first side, which is the one that connects, finds the second one there.
fn lead_by(pair: &mut Pair, target: &str, proxy: &str) -> Result<()> {
    let node = pair.node_mut(Side::First);
    let text = fs::read_to_string(&node.config)?.replace(target, proxy);
    node.config = node.folder.join("cluster.toml");
    fs::write(&node.config, text)?;
    Ok(())
}

fn host(side: Side) -> u8 {
    1 + u8::from(side == Side::Second)
}
