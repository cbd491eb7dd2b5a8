//! From configuration to what the engine takes.

use mirror_core::units::Uuid;

use super::{Config, Encryption, Mirror, PeerLoss};

impl Config {
    pub fn cluster_id(&self) -> Uuid {
        Uuid::from_name("cluster", &self.cluster)
    }

    /// Identity of the node at `index` of [`Config::nodes`].
    pub fn node_id(&self, index: usize) -> Uuid {
        Uuid::from_name("node", &format!("{}/{}", self.cluster, self.nodes[index]))
    }

    pub fn mirror_id(&self, mirror: &Mirror) -> Uuid {
        Uuid::from_name("mirror", &format!("{}/{}", self.cluster, mirror.name))
    }

    /// Digest over the settings that both sides must share: who takes part and how an answer is
    /// earned. Paths, addresses, rates and time-outs may differ while a file is being rolled out.
    pub fn digest(&self, mirror: &Mirror) -> [u8; 16] {
        let peer_loss = match mirror.peer_loss {
            PeerLoss::Hold => "hold",
            PeerLoss::Continue => "continue",
        };
        let encryption = match mirror.encryption {
            Encryption::Tls => "tls",
            Encryption::Off => "off",
        };
        let shared = format!(
            "{}\n{}\n{}\n{}\n{:?}\n{:?}\n{peer_loss}\n{encryption}",
            self.cluster,
            self.nodes[0],
            self.nodes[1],
            mirror.name,
            mirror.mode,
            mirror.initial_sync,
        );
        Uuid::from_name("shared settings", &shared).0
    }
}
