//! The three clusters of the tests, as their configuration says it.

use std::fmt::Write;
use std::path::Path;

use crate::network::{Net, ROUTER};

pub const GROUP: &str = "failover1";
pub const WITNESS_HOST: u8 = 9;
const WITNESS_PORT: u16 = 29080;

/// Silence after which a server counts as lost. Long beside what a busy machine may stall, because a
/// failover without need is a failure here.
pub const HEARTBEAT_TIMEOUT_MS: u64 = 2_000;
/// Longer, so that a lost server is known as such before its mirror is.
pub const PEER_TIMEOUT_MS: u64 = 2_800;
pub const LEASE_MS: u64 = 1_500;

/// Who keeps two servers from running the group at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Guard {
    /// Nobody: a ping target that both reach.
    Nobody,
    /// The same, and a forced stop.
    ForcedStop,
    /// A witness, without a forced stop.
    Witness,
}

#[derive(Debug, Clone, Copy)]
pub struct Setup {
    pub guard: Guard,
    /// The group mounts the mirror; otherwise it only attaches it, and clients write to its export.
    pub mounted: bool,
}

impl Setup {
    pub fn peer_loss(self) -> &'static str {
        match self.guard {
            Guard::Nobody => "continue",
            Guard::ForcedStop | Guard::Witness => "hold",
        }
    }

    /// What follows the mirror's own sections. `here` is a folder of each server's own.
    pub fn agent_sections(self, here: &Path, script: &Path) -> String {
        let here = here.display();
        let address = |net: Net, host| format!("{}:29002", net.address(host));
        let mut text = format!(
            r#"
[agent]
alert_log = "{here}/alert.log"

[heartbeat]
interval = "100ms"
timeout = "{HEARTBEAT_TIMEOUT_MS}ms"

[[heartbeat.path]]
name = "interconnect"
on = {{ server1 = "{}", server2 = "{}" }}

[[heartbeat.path]]
name = "public"
on = {{ server1 = "{}", server2 = "{}" }}

[partition]
isolation_timeout = "500ms"
action = "none"
"#,
            address(Net::Interconnect, 1),
            address(Net::Interconnect, 2),
            address(Net::Public, 1),
            address(Net::Public, 2),
        );
        let _ = match self.guard {
            Guard::Nobody | Guard::ForcedStop => write!(
                text,
                r#"
[[partition.resolver]]
kind = "ping"
targets = ["{ROUTER}"]
interval = "200ms"
timeout = "200ms"
"#
            ),
            Guard::Witness => write!(
                text,
                r#"
[[partition.resolver]]
kind = "witness"

[arbiter]
url = "http://{}:{WITNESS_PORT}"
lease = "{LEASE_MS}ms"
timeout = "300ms"
"#,
                Net::Public.address(WITNESS_HOST)
            ),
        };
        if self.guard == Guard::ForcedStop {
            let _ = write!(
                text,
                r#"
[forced_stop]
kind = "custom"
script = "{}"
timeout = "10s"
fence_delay = "200ms"
check_interval = "1s"
"#,
                script.display()
            );
        }
        let mount = match self.mounted {
            true => format!(
                "mount = \"{here}/mnt\"\nfsck_timeout = \"30s\"\nunmount_interval = \"100ms\"\n"
            ),
            false => String::new(),
        };
        let _ = write!(
            text,
            r#"
[[group]]
name = "{GROUP}"
final_action = "none"

[[group.resource]]
kind = "mirror-disk"
name = "disk"
mirror = "{mirror}"
attach = "fuse"
start_timeout = "40s"
stop_timeout = "20s"
{mount}
[[group.resource]]
kind = "floating-ip"
name = "address"
address = "{floating}/24"
interface = "{interface}"

[[group.resource]]
kind = "exec"
name = "app"
start = ["/bin/touch", "{here}/app"]
stop = ["/bin/rm", "-f", "{here}/app"]

[[monitor]]
kind = "mirror-disk"
name = "mdw1"
mirror = "{mirror}"
group = "{GROUP}"
resource = "disk"
interval = "500ms"
timeout = "500ms"
"#,
            mirror = local_pair::MIRROR,
            floating = Net::Public.address(100),
            interface = Net::Public.interface(),
        );
        text
    }
}

/// The witness has a file of its own.
pub fn witness_config(folder: &Path) -> String {
    let folder = folder.display();
    format!(
        r#"
listen = "{}:{WITNESS_PORT}"
state_file = "{folder}/witness.state"

[[cluster]]
name = "local"
key_file = "{folder}/cluster.key"
"#,
        Net::Public.address(WITNESS_HOST)
    )
}
