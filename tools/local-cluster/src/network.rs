//! The networks of a test: two switches in a namespace of their own, and cables from there to machines.
//!
//! `pub0` is the clients' network, with a router that always answers; `ic0` connects the servers alone.
//! A cut isolates the servers' ports from each other, so that both still reach everything else. A port
//! goes with the machine at its other end.

use anyhow::{Context, Result};

use crate::machine::Machine;

/// Always answers a ping, and belongs to nobody.
pub const ROUTER: &str = "10.77.0.254";

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Net {
    Public,
    Interconnect,
}

impl Net {
    pub const BOTH: [Net; 2] = [Net::Public, Net::Interconnect];

    fn switch(self) -> &'static str {
        match self {
            Net::Public => "public",
            Net::Interconnect => "ic",
        }
    }

    /// The name of the interface in every machine.
    pub fn interface(self) -> &'static str {
        match self {
            Net::Public => "pub0",
            Net::Interconnect => "ic0",
        }
    }

    /// Limits what a machine sends here by a token bucket, or takes that limit away, as a new interface has none.
    pub fn shape(self, machine: &Machine, mbit: Option<u32>) -> Result<()> {
        let bucket = mbit.map(|mbit| {
            // What the kernel's timer lets pass in a few ticks of it.
            let burst_kib = (mbit / 4).max(64);
            format!("tbf rate {mbit}mbit burst {burst_kib}kb latency 200ms")
        });
        let discipline = bucket.as_deref().unwrap_or("noqueue");
        let interface = self.interface();
        let mut words = vec!["tc", "qdisc", "replace", "dev", interface, "root"];
        words.extend(discipline.split(' '));
        machine.run_in_network(&words)?;
        Ok(())
    }

    pub fn address(self, host: u8) -> String {
        match self {
            Net::Public => format!("10.77.0.{host}"),
            Net::Interconnect => format!("10.77.1.{host}"),
        }
    }
}

#[derive(Debug)]
struct Port {
    name: String,
    net: Net,
    host: u8,
    /// Its cable leads to a server, which can be cut off from the other one.
    of_server: bool,
}

#[derive(Debug)]
pub struct Network {
    switches: Machine,
    ports: Vec<Port>,
    cut: [bool; 2],
    plugged: u32,
}

impl Network {
    pub fn new() -> Result<Self> {
        let switches = Machine::boot()?;
        for net in Net::BOTH {
            let name = net.switch();
            // Otherwise a bridge takes the lowest address of its ports, and changes it with a machine that goes: the
            // others would not find the router until they have forgotten the old one.
            let card = format!("02:77:00:00:{:02x}:fe", net as u8);
            switches.run_in_network(&[
                "ip", "link", "add", name, "address", &card, "type", "bridge",
            ])?;
            switches.run_in_network(&["ip", "link", "set", name, "up"])?;
        }
        let address = format!("{ROUTER}/24");
        switches.run_in_network(&["ip", "addr", "add", &address, "dev", Net::Public.switch()])?;
        Ok(Self {
            switches,
            ports: Vec::new(),
            cut: [false; 2],
            plugged: 0,
        })
    }

    /// Connects a machine as `host` of a network.
    pub fn plug(&mut self, net: Net, host: u8, machine: &Machine, of_server: bool) -> Result<()> {
        self.plugged += 1;
        let name = format!("p{}", self.plugged);
        let (interface, init) = (net.interface(), machine.init().to_string());
        self.switches.run_in_network(&[
            "ip", "link", "add", &name, "type", "veth", "peer", "name", interface, "netns", &init,
        ])?;
        self.switches.run_in_network(&[
            "ip",
            "link",
            "set",
            &name,
            "master",
            net.switch(),
            "up",
        ])?;
        // As a real card's: neighbours that remember it find the machine again after it was off.
        let card = format!("02:77:00:00:{:02x}:{host:02x}", net as u8);
        machine.run_in_network(&["ip", "link", "set", interface, "address", &card])?;
        let address = format!("{}/24", net.address(host));
        machine.run_in_network(&["ip", "addr", "add", &address, "dev", interface])?;
        machine.run_in_network(&["ip", "link", "set", interface, "up"])?;
        let cut = self.cut[net as usize];
        self.ports
            .retain(|port| (port.net, port.host) != (net, host));
        self.ports.push(Port {
            name,
            net,
            host,
            of_server,
        });
        if cut {
            self.cut(net)?;
        }
        Ok(())
    }

    /// A machine is off. Its ports go by themselves, at a moment of the kernel's own.
    pub fn unplug(&mut self, host: u8) {
        self.ports.retain(|port| port.host != host);
    }

    /// The servers no longer reach each other here; both reach everybody else.
    pub fn cut(&mut self, net: Net) -> Result<()> {
        self.isolate(net, true)
    }

    pub fn heal(&mut self, net: Net) -> Result<()> {
        self.isolate(net, false)
    }

    fn isolate(&mut self, net: Net, cut: bool) -> Result<()> {
        self.cut[net as usize] = cut;
        let word = if cut { "on" } else { "off" };
        for port in self
            .ports
            .iter()
            .filter(|port| port.net == net && port.of_server)
        {
            let words = [
                "ip",
                "link",
                "set",
                &port.name,
                "type",
                "bridge_slave",
                "isolated",
                word,
            ];
            self.switches.run_in_network(&words)?;
        }
        Ok(())
    }

    /// Pulls or plugs the cable of one machine.
    pub fn set_link(&self, net: Net, host: u8, up: bool) -> Result<()> {
        let mut ports = self.ports.iter();
        let port = ports
            .find(|port| (port.net, port.host) == (net, host))
            .with_context(|| format!("host {host} is not plugged"))?;
        let word = if up { "up" } else { "down" };
        self.switches
            .run_in_network(&["ip", "link", "set", &port.name, word])?;
        Ok(())
    }
}
