//! The bed holds what it promises: machines apart, cuts where they are said to be, nothing left.

use anyhow::{Result, ensure};
use local_cluster::{Bed, Daemon, Guard, Machine, Net, Network, ROUTER, Setup};
use local_pair::{Deadline, Side};
use mirror_core::control::{DiskState, Role};

struct Cabling {
    network: Network,
    servers: [Machine; 2],
    witness: Machine,
}

const WITNESS: u8 = 9;

fn cabling() -> Result<Cabling> {
    let mut network = Network::new()?;
    let servers = [Machine::boot()?, Machine::boot()?];
    for (machine, host) in servers.iter().zip([1, 2]) {
        for net in Net::BOTH {
            network.plug(net, host, machine, true)?;
        }
    }
    let witness = Machine::boot()?;
    network.plug(Net::Public, WITNESS, &witness, false)?;
    Ok(Cabling {
        network,
        servers,
        witness,
    })
}

/// Whether a datagram gets there: a neighbour is only known once it has answered.
fn reaches(machine: &Machine, address: &str) -> Result<bool> {
    machine.run(&["ip", "neigh", "flush", "to", address])?;
    let knock = format!("exec 3<>/dev/tcp/{address}/9");
    // Refused means that somebody is there to refuse; nobody there is a time-out.
    let words = ["timeout", "1", "bash", "-c", &knock];
    let said = match machine.run(&words) {
        Ok(_) => return Ok(true),
        Err(error) => format!("{error:#}"),
    };
    Ok(said.contains("refused"))
}

/// Whoever is there answers in the end, however busy this machine is.
fn ensure_reaches(machine: &Machine, address: &str) -> Result<()> {
    Deadline::after_seconds(20).until(&format!("an answer of {address}"), || {
        Ok(reaches(machine, address)?.then_some(()))
    })
}

#[test]
fn a_cut_parts_the_servers_and_leaves_them_everybody_else() -> Result<()> {
    let mut bed = cabling()?;
    let witness = Net::Public.address(WITNESS);
    let expect = |bed: &Cabling, net: Net, together: bool| -> Result<()> {
        for (machine, other) in bed.servers.iter().zip([2, 1]) {
            let other = net.address(other);
            match together {
                true => ensure_reaches(machine, &other)?,
                false => ensure!(!reaches(machine, &other)?, "{net:?}: the other is reached"),
            }
            ensure_reaches(machine, ROUTER)?;
            ensure_reaches(machine, &witness)?;
        }
        Ok(())
    };
    expect(&bed, Net::Public, true)?;
    expect(&bed, Net::Interconnect, true)?;
    bed.network.cut(Net::Interconnect)?;
    expect(&bed, Net::Interconnect, false)?;
    expect(&bed, Net::Public, true)?;
    bed.network.cut(Net::Public)?;
    expect(&bed, Net::Public, false)?;
    // A server that is switched on again finds the cut in place.
    bed.servers[1].cut_power()?;
    bed.servers[1] = Machine::boot()?;
    for net in Net::BOTH {
        bed.network.plug(net, 2, &bed.servers[1], true)?;
    }
    expect(&bed, Net::Public, false)?;
    for net in Net::BOTH {
        bed.network.heal(net)?;
        expect(&bed, net, true)?;
    }
    bed.network.set_link(Net::Public, 1, false)?;
    ensure!(!reaches(&bed.servers[0], ROUTER)?);
    ensure!(!reaches(&bed.witness, &Net::Public.address(1))?);
    bed.network.set_link(Net::Public, 1, true)?;
    expect(&bed, Net::Public, true)
}

#[test]
fn a_machine_without_power_leaves_no_process_and_no_mount() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let point = folder.path().display().to_string();
    let mut machine = Machine::boot()?;
    machine.run(&["mount", "-t", "tmpfs", "tmpfs", &point])?;
    machine.run(&["touch", &format!("{point}/inside")])?;
    ensure!(std::fs::read_dir(&point)?.next().is_none(), "its own mount");
    let log = folder.path().join("log");
    let mut process = machine.spawn(&["sleep", "1000"], &log)?;
    ensure!(process.is_running()?);
    machine.cut_power()?;
    process.wait_end()?;
    let mounts = std::fs::read_to_string("/proc/self/mounts")?;
    ensure!(!mounts.contains(&point));
    Ok(())
}

#[test]
fn a_frozen_machine_stands_still_and_goes_on() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let machine = Machine::boot()?;
    let count = folder.path().join("count");
    let log = folder.path().join("log");
    let script = format!("while :; do echo x >> {}; done", count.display());
    let mut process = machine.spawn(&["bash", "-c", &script], &log)?;
    let size = || {
        std::fs::metadata(&count)
            .map(|data| data.len())
            .unwrap_or(0)
    };
    let grows = |from: u64| {
        Deadline::after_seconds(20).until("progress", || Ok((size() > from).then_some(())))
    };
    grows(0)?;
    machine.freeze()?;
    let frozen = size();
    ensure!(process.is_running()?);
    ensure!(frozen == size());
    machine.thaw()?;
    grows(frozen)?;
    process.kill()?;
    ensure!(!process.is_running()?);
    Ok(())
}

#[test]
fn the_disks_of_a_cluster_are_in_step_before_its_agents_start() -> Result<()> {
    let mut bed = Bed::prepared(Setup {
        guard: Guard::ForcedStop,
        mounted: true,
    })?;
    ensure_in_step(&bed)?;
    bed.cut()?;
    bed.pair().wait_alone(Side::First)?;
    bed.heal()?;
    ensure_in_step(&bed)?;
    bed.cut_power(Side::Second)?;
    bed.pair().wait_alone(Side::First)?;
    bed.boot(Side::Second)?;
    bed.start(Side::Second, Daemon::Mirrord)?;
    ensure_in_step(&bed)
}

#[test]
fn a_witness_that_was_killed_is_started_again() -> Result<()> {
    let mut bed = Bed::prepared(Setup {
        guard: Guard::Witness,
        mounted: false,
    })?;
    ensure_in_step(&bed)?;
    bed.kill_witness()?;
    bed.start_witness()
}

fn ensure_in_step(bed: &Bed) -> Result<()> {
    bed.pair().wait_connected()?;
    for side in Side::BOTH {
        let mirror = bed.pair().status(side)?;
        ensure!(mirror.role == Role::Secondary, "{mirror:?}");
        ensure!(mirror.disk == DiskState::UpToDate, "{mirror:?}");
        bed.check(side)?;
    }
    Ok(())
}
