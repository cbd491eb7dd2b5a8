//! Two servers and a witness, each a machine of its own, with real daemons.
//!
//! The first contact of the disks, and the file system on them, are made by an operator before the agents
//! start, as on a real cluster. From then on everything is the agents'.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use agent::control::{ClusterStatus, GroupStatus, State};
use anyhow::{Context, Result, bail, ensure};
use local_disks::Cleaner;
use local_pair::{Deadline, MIRROR, Outcome, Pair, PairOptions, Programs, Side, run_tool};
use nix::sys::signal::Signal;
use nix::unistd::Pid;

use crate::disks::{Disks, FAILING};
use crate::machine::{Machine, Process, tail};
use crate::network::{Net, Network};
use crate::power::Power;
use crate::setup::{GROUP, Guard, PEER_TIMEOUT_MS, Setup, WITNESS_HOST, witness_config};

const DATA_BYTES: u64 = 64 << 20;
const START_SECONDS_MAX: u64 = 30;
const TOOL_LIMIT: Duration = Duration::from_secs(60);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Daemon {
    Mirrord,
    Agent,
}

impl Daemon {
    pub const BOTH: [Daemon; 2] = [Daemon::Mirrord, Daemon::Agent];
}

#[derive(Debug, Default)]
struct Server {
    // Before the machine: they are gone first.
    mirrord: Option<Process>,
    agent: Option<Process>,
    machine: Option<Machine>,
}

impl Server {
    fn daemon(&mut self, daemon: Daemon) -> &mut Option<Process> {
        match daemon {
            Daemon::Mirrord => &mut self.mirrord,
            Daemon::Agent => &mut self.agent,
        }
    }
}

#[derive(Debug)]
pub struct Bed {
    servers: [Server; 2],
    witness: Option<(Process, Machine)>,
    network: Network,
    power: Power,
    /// Servers whose power the forced stop has cut, in order.
    pub stopped: Vec<Side>,
    /// How often a disk was replaced.
    pub replaced: u64,
    /// Leaves requests for a forced stop waiting.
    pub power_held: bool,
    setup: Setup,
    pair: Pair,
    cleaner: Cleaner,
    /// After the servers: what of them waits for a disk is gone before it.
    disks: Option<Disks>,
}

impl Bed {
    /// The group runs on the first server, and both sides of the mirror are in step.
    pub fn running(setup: Setup) -> Result<Self> {
        let mut bed = Self::prepared(setup)?;
        bed.bring_online()?;
        Ok(bed)
    }

    /// Starts the agents, until the group runs on the first server.
    pub fn bring_online(&mut self) -> Result<()> {
        self.start_agents()?;
        self.wait_group(Side::First, State::Online)?;
        self.wait_in_step()
    }

    /// Changes one place of the file that both servers read. A daemon takes it up when it starts.
    pub fn configure(&self, from: &str, to: &str) -> Result<()> {
        change(&self.pair.node(Side::First).config, from, to)
    }

    /// Gives a server a file of its own, with one place changed.
    pub fn configure_alone(&mut self, side: Side, from: &str, to: &str) -> Result<()> {
        let node = self.pair.node_mut(side);
        let own = node.folder.join("cluster.toml");
        if node.config != own {
            fs::copy(&node.config, &own)?;
            node.config = own;
        }
        change(&node.config, from, to)
    }

    /// The same with the file of the witness.
    pub fn configure_witness(&self, from: &str, to: &str) -> Result<()> {
        change(&self.witness_config(), from, to)
    }

    fn witness_config(&self) -> PathBuf {
        self.folder().join("witness.toml")
    }

    /// Machines, networks and disks in step; no agent yet.
    pub fn prepared(setup: Setup) -> Result<Self> {
        Self::prepared_with(setup, options(setup), None)
    }

    /// The same with [`Disks`] that fail on demand.
    pub fn prepared_with_disks(setup: Setup) -> Result<Self> {
        let mut options = options(setup);
        let disks = Disks::for_pair(&mut options)?;
        Self::prepared_with(setup, options, Some(disks))
    }

    fn prepared_with(setup: Setup, options: PairOptions, disks: Option<Disks>) -> Result<Self> {
        let addresses = [1, 2].map(|host| {
            let at = format!("{}:29051", Net::Interconnect.address(host));
            (at, "127.0.0.1:10809".into())
        });
        let pair = Pair::create_at(Programs::fresh()?, &options, addresses)?;
        let cleaner = Cleaner::start(pair.folder())?;
        let here = pair.folder().join("here");
        fs::create_dir(&here)?;
        for side in Side::BOTH {
            fs::create_dir_all(pair.node(side).folder.join("here/mnt"))?;
        }
        let mut bed = Self {
            servers: [Server::default(), Server::default()],
            witness: None,
            network: Network::new()?,
            power: Power::new(pair.folder())?,
            stopped: Vec::new(),
            replaced: 0,
            power_held: false,
            setup,
            pair,
            cleaner,
            disks,
        };
        for side in Side::BOTH {
            bed.boot(side)?;
        }
        bed.prepare_disks()?;
        let config = bed.pair.folder().join("cluster.toml");
        let text = fs::read_to_string(&config)? + &setup.agent_sections(&here, &bed.power.script);
        fs::write(&config, text)?;
        if setup.guard == Guard::Witness {
            bed.start_witness()?;
        }
        for side in Side::BOTH {
            bed.start(side, Daemon::Mirrord)?;
        }
        Ok(bed)
    }

    fn prepare_disks(&mut self) -> Result<()> {
        for side in Side::BOTH {
            self.pair.init(side, &[]).done()?;
            self.start(side, Daemon::Mirrord)?;
        }
        self.pair.wait_connected()?;
        self.pair.promote_first()?;
        if self.setup.mounted {
            self.make_file_system()?;
        }
        self.ctl(Side::First, &["demote", MIRROR]).done()?;
        for side in Side::BOTH {
            self.stop(side, Daemon::Mirrord)?;
        }
        Ok(())
    }

    fn make_file_system(&self) -> Result<()> {
        let image = self.pair.folder().join("ext4");
        let file = fs::File::create(&image)?;
        file.set_len(DATA_BYTES)?;
        let path = image.display().to_string();
        let uri = self.pair.uri(Side::First);
        run_tool("mke2fs", &["-q", "-t", "ext4", &path], TOOL_LIMIT)?;
        run_tool("nbdcopy", &["--flush", &path, &uri], TOOL_LIMIT)?;
        fs::remove_file(&image)?;
        Ok(())
    }

    // ---- Machines

    /// Switches a server on. Nothing runs on it yet.
    pub fn boot(&mut self, side: Side) -> Result<()> {
        let disks = self.disks.as_ref().filter(|_| side == FAILING);
        let machine = Machine::boot_with(disks.map_or_else(Vec::new, Disks::mount_points))?;
        let own = self.pair.node(side).folder.join("here");
        let here = self.pair.folder().join("here");
        let [own, here] = [own, here].map(|path| path.display().to_string());
        machine.run(&["mount", "--bind", &own, &here])?;
        for net in Net::BOTH {
            self.network.plug(net, host(side), &machine, true)?;
        }
        // The run directory is in memory on a real machine: nothing of it outlives the power.
        let run_dir = self.pair.node(side).run_dir();
        if run_dir.exists() {
            fs::remove_dir_all(&run_dir)?;
        }
        // Nor does what says that the application runs.
        let app = self.here(side).join("app");
        if app.exists() {
            fs::remove_file(app)?;
        }
        self.server(side).machine = Some(machine);
        Ok(())
    }

    pub fn cut_power(&mut self, side: Side) -> Result<()> {
        let server = self.server(side);
        if let Some(machine) = &mut server.machine {
            machine.cut_power()?;
        }
        *server = Server::default();
        self.network.unplug(host(side));
        Ok(())
    }

    /// SIGSTOP for all that runs on a server.
    pub fn freeze(&self, side: Side) -> Result<()> {
        self.machine(side)?.freeze()
    }

    pub fn thaw(&self, side: Side) -> Result<()> {
        self.machine(side)?.thaw()
    }

    fn machine(&self, side: Side) -> Result<&Machine> {
        let machine = &self.servers[side.index()].machine;
        machine.as_ref().context("the server is off")
    }

    pub fn is_on(&self, side: Side) -> bool {
        self.servers[side.index()].machine.is_some()
    }

    /// A machine of nobody's in the public network.
    pub fn stranger(&mut self, host: u8) -> Result<Machine> {
        let machine = Machine::boot()?;
        self.network.plug(Net::Public, host, &machine, false)?;
        Ok(machine)
    }

    pub fn spawn_on(&self, side: Side, words: &[&str], log: &str) -> Result<Process> {
        self.machine(side)?.spawn(words, &self.folder().join(log))
    }

    // ---- Daemons

    /// Starts a daemon and waits until it answers.
    pub fn start(&mut self, side: Side, daemon: Daemon) -> Result<()> {
        let programs = self.pair.programs().clone();
        let program = match daemon {
            Daemon::Mirrord => &programs.mirrord,
            Daemon::Agent => &programs.mirror_agent,
        };
        let node = self.pair.node(side);
        let words = [program, Path::new("--config"), &node.config].map(Path::display);
        let mut words = words.map(|word| word.to_string()).to_vec();
        words.extend(["--node", node.name, "--run-dir"].map(String::from));
        words.push(node.run_dir().display().to_string());
        if daemon == Daemon::Agent {
            // Nothing here may ever end the machine that the tests run on.
            let record = node.folder.join("actions").display().to_string();
            words.extend(["--record-actions".into(), record]);
        }
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let log = self.log_of(side, daemon);
        let process = self.machine(side)?.spawn(&words, &log)?;
        *self.server(side).daemon(daemon) = Some(process);
        let question: &[&str] = match daemon {
            Daemon::Mirrord => &["--json", "mdstat"],
            Daemon::Agent => &["--json", "status"],
        };
        let what = format!("the start of {daemon:?} on {side:?}");
        let started = Deadline::after_seconds(START_SECONDS_MAX).until(&what, || {
            let process = self.server(side).daemon(daemon).as_mut();
            if !process.context("it was started")?.is_running()? {
                bail!("it ended; {}", tail(&log));
            }
            let outcome = self.ctl(side, question);
            match outcome.code {
                Some(0) => Ok(Some(())),
                Some(3) => Ok(None),
                _ => outcome.done().map(|_| None),
            }
        });
        started.with_context(|| self.story())
    }

    pub fn process_id(&self, side: Side, daemon: Daemon) -> Result<Pid> {
        let server = &self.servers[side.index()];
        let process = match daemon {
            Daemon::Mirrord => &server.mirrord,
            Daemon::Agent => &server.agent,
        };
        Ok(process.as_ref().context("it does not run")?.id())
    }

    pub fn runs(&mut self, side: Side, daemon: Daemon) -> Result<bool> {
        match self.server(side).daemon(daemon) {
            Some(process) => process.is_running(),
            None => Ok(false),
        }
    }

    pub fn start_agents(&mut self) -> Result<()> {
        for side in Side::BOTH {
            self.start(side, Daemon::Agent)?;
        }
        Ok(())
    }

    /// Starts both daemons of a server that has just been switched on.
    pub fn start_server(&mut self, side: Side) -> Result<()> {
        for daemon in Daemon::BOTH {
            self.start(side, daemon)?;
        }
        Ok(())
    }

    pub fn kill(&mut self, side: Side, daemon: Daemon) -> Result<()> {
        let process = self.server(side).daemon(daemon).take();
        process.context("it does not run")?.kill()
    }

    /// A clean stop by SIGTERM.
    pub fn stop(&mut self, side: Side, daemon: Daemon) -> Result<()> {
        let process = self.server(side).daemon(daemon).take();
        let mut process = process.context("it does not run")?;
        process.signal(Signal::SIGTERM)?;
        process.wait_end()
    }

    pub fn start_witness(&mut self) -> Result<()> {
        let machine = match self.witness.take() {
            Some((_, machine)) => machine,
            None => {
                let machine = Machine::boot()?;
                self.network
                    .plug(Net::Public, WITNESS_HOST, &machine, false)?;
                machine
            }
        };
        let program = self.pair.programs().mirror_witness.display().to_string();
        let folder = self.pair.folder();
        let config = self.witness_config();
        if !config.exists() {
            fs::write(&config, witness_config(folder))?;
        }
        let config = config.display().to_string();
        let words = [&program, "--config", &config];
        let process = machine.spawn(&words, &folder.join("witness.log"))?;
        self.witness = Some((process, machine));
        Ok(())
    }

    /// `kill -9`; its machine stays, as does its file.
    pub fn kill_witness(&mut self) -> Result<()> {
        let (process, _) = self.witness.as_mut().context("there is no witness")?;
        process.kill()
    }

    // ---- Disks

    pub fn disks(&self) -> Result<&Disks> {
        let disks = self.disks.as_ref();
        disks.context("this bed has no disks that fail")
    }

    /// An empty disk in the place of the old one, as `docs/operations/replace-a-disk.md` has it.
    /// The group runs on the other server.
    pub fn replace_disk(&mut self, side: Side) -> Result<()> {
        for daemon in [Daemon::Agent, Daemon::Mirrord] {
            self.stop(side, daemon)?;
        }
        self.pair.init(side, &["--force"]).done()?;
        self.replaced += 1;
        self.start_server(side)
    }

    // ---- The networks

    /// The servers lose each other on every path; both reach everybody else.
    pub fn cut(&mut self) -> Result<()> {
        Net::BOTH.iter().try_for_each(|net| self.network.cut(*net))
    }

    pub fn cut_one(&mut self, net: Net) -> Result<()> {
        self.network.cut(net)
    }

    pub fn heal(&mut self) -> Result<()> {
        Net::BOTH.iter().try_for_each(|net| self.network.heal(*net))
    }

    /// Pulls or plugs all cables of a server.
    pub fn set_links(&self, side: Side, up: bool) -> Result<()> {
        let mut nets = Net::BOTH.iter();
        nets.try_for_each(|net| self.network.set_link(*net, host(side), up))
    }

    pub fn address(&self, side: Side, net: Net) -> String {
        net.address(host(side))
    }

    /// A tool of the network, run in a server.
    pub fn run_on(&self, side: Side, words: &[&str]) -> Result<String> {
        self.machine(side)?.run_in_network(words)
    }

    /// Limits what a server sends, or no longer.
    pub fn shape(&self, side: Side, net: Net, mbit: Option<u32>) -> Result<()> {
        net.shape(self.machine(side)?, mbit)
    }

    /// What is mounted in a server, as the kernel tells it there.
    pub fn mounts(&self, side: Side) -> Result<String> {
        self.machine(side)?.run(&["cat", "/proc/mounts"])
    }

    // ---- What it says

    pub fn ctl(&self, side: Side, words: &[&str]) -> Outcome {
        self.pair.ctl(side, words)
    }

    /// `mirrorctl check` where it looks at the server's own interfaces and folders. Gives all it says.
    pub fn check(&self, side: Side) -> Result<String> {
        let program = self.pair.programs().mirrorctl.display().to_string();
        let config = self.pair.node(side).config.display().to_string();
        let run_dir = self.pair.node(side).run_dir().display().to_string();
        let node = self.name(side);
        let words = [
            &program,
            "--config",
            &config,
            "--node",
            node,
            "--run-dir",
            &run_dir,
        ];
        let command = format!("{} check 2>&1", words.join(" "));
        self.machine(side)?.run(&["sh", "-c", &command])
    }

    pub fn pair(&self) -> &Pair {
        &self.pair
    }

    pub fn folder(&self) -> &Path {
        self.pair.folder()
    }

    pub fn name(&self, side: Side) -> &'static str {
        self.pair.node(side).name
    }

    pub fn log_of(&self, side: Side, daemon: Daemon) -> PathBuf {
        match daemon {
            Daemon::Mirrord => self.pair.node(side).log_path(),
            Daemon::Agent => self.pair.node(side).folder.join("agent.log"),
        }
    }

    /// The folder of a server's own, as seen from here.
    pub fn here(&self, side: Side) -> PathBuf {
        self.pair.node(side).folder.join("here")
    }

    /// What is mounted in a server, as seen from here.
    pub fn mount_point(&self) -> PathBuf {
        self.folder().join("here/mnt")
    }

    /// The alert log, a line an alert.
    pub fn alerts(&self, side: Side) -> Vec<String> {
        let text = fs::read_to_string(self.here(side).join("alert.log")).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    /// The final actions that an agent would have taken, in order.
    pub fn actions(&self, side: Side) -> Vec<String> {
        let record = self.pair.node(side).folder.join("actions");
        let text = fs::read_to_string(record).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    pub fn status(&self, side: Side) -> Result<ClusterStatus> {
        let text = self.ctl(side, &["--json", "status"]).done()?;
        serde_json::from_str(&text).with_context(|| format!("`status --json`: {text}"))
    }

    pub fn group(&self, side: Side) -> Result<GroupStatus> {
        let mut groups = self.status(side)?.groups.into_iter();
        let found = groups.find(|group| group.name == GROUP);
        found.with_context(|| format!("{GROUP} is not in the status"))
    }

    /// The last resource of the group runs there.
    pub fn app_runs(&self, side: Side) -> bool {
        self.is_on(side) && self.here(side).join("app").exists()
    }

    // ---- States

    /// Waits for a state, and serves the forced stop meanwhile.
    pub fn until<T>(
        &mut self,
        what: &str,
        seconds: u64,
        mut look: impl FnMut(&mut Self) -> Result<Option<T>>,
    ) -> Result<T> {
        let found = Deadline::after_seconds(seconds).until(what, || {
            self.serve_power()?;
            look(self)
        });
        found.with_context(|| self.story())
    }

    fn serve_power(&mut self) -> Result<()> {
        let Some(request) = self.power.request()? else {
            return Ok(());
        };
        if self.power_held {
            return Ok(());
        }
        let side = Side::BOTH
            .into_iter()
            .find(|side| self.name(*side) == request.server)
            .with_context(|| format!("there is no server {:?}", request.server))?;
        let asking = side.other();
        // A server that is about to lose its own power would otherwise ask in vain.
        if !self.is_on(asking) {
            return self.power.answer(&request);
        }
        ensure!(
            !self.app_runs(asking) || !self.app_runs(side),
            "both run the group before one is stopped"
        );
        self.cut_power(side)?;
        self.stopped.push(side);
        self.power.answer(&request)
    }

    /// Waits until the agent of a server says so of its group.
    pub fn wait_group(&mut self, side: Side, state: State) -> Result<GroupStatus> {
        let what = format!("{GROUP} {state:?} on {side:?}");
        self.until(&what, 60, |bed| {
            let outcome = bed.ctl(side, &["--json", "status"]);
            if outcome.code == Some(3) || outcome.code == Some(4) {
                return Ok(None);
            }
            let group = bed.group(side)?;
            Ok((group.state == state).then_some(group))
        })
    }

    pub fn wait_in_step(&mut self) -> Result<()> {
        self.pair.wait_synced().with_context(|| self.story())
    }

    /// All that a person would look at first.
    pub fn story(&self) -> String {
        let mut text = String::new();
        for side in Side::BOTH {
            let alerts = self.alerts(side);
            let alerts = &alerts[alerts.len().saturating_sub(40)..];
            text += &format!("\n== {}, alerts:\n{}\n", self.name(side), alerts.join("\n"));
            for daemon in Daemon::BOTH {
                text += &format!("{}\n", tail(&self.log_of(side, daemon)));
            }
        }
        text + &tail(&self.folder().join("witness.log"))
    }

    /// Puts all logs into a folder.
    pub fn keep_logs(&self, folder: &Path) -> Result<()> {
        fs::create_dir_all(folder)?;
        for side in Side::BOTH {
            let name = self.name(side);
            for daemon in Daemon::BOTH {
                let log = self.log_of(side, daemon);
                fs::copy(&log, folder.join(format!("{name}-{daemon:?}.log")))?;
            }
            let alerts = self.alerts(side).join("\n");
            fs::write(folder.join(format!("{name}-alerts.log")), alerts)?;
        }
        let witness = self.folder().join("witness.log");
        if witness.exists() {
            fs::copy(witness, folder.join("witness.log"))?;
        }
        Ok(())
    }

    fn server(&mut self, side: Side) -> &mut Server {
        &mut self.servers[side.index()]
    }
}

fn options(setup: Setup) -> PairOptions {
    PairOptions {
        peer_loss: setup.peer_loss(),
        extra: vec![format!("peer_timeout = \"{PEER_TIMEOUT_MS}ms\"")],
        ..PairOptions::sized(DATA_BYTES)
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.story());
        }
        self.servers = [Server::default(), Server::default()];
        self.witness = None;
        self.cleaner.conclude();
    }
}

fn change(file: &Path, from: &str, to: &str) -> Result<()> {
    let text = fs::read_to_string(file)?;
    let places = text.matches(from).count();
    ensure!(
        places == 1,
        "{} has {from:?} in {places} places",
        file.display()
    );
    fs::write(file, text.replace(from, to))?;
    Ok(())
}

fn host(side: Side) -> u8 {
    match side {
        Side::First => 1,
        Side::Second => 2,
    }
}
