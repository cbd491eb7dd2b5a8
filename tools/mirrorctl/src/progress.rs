//! A progress bar for a resync or verify, drawn on standard error where that is a terminal.

use indicatif::{ProgressBar, ProgressStyle};
use mirror_core::control::SyncStatus;

/// Shows the sync that is running; nothing while none is.
#[derive(Debug)]
pub struct Progress {
    wanted: bool,
    bar: Option<ProgressBar>,
}

impl Progress {
    pub fn new(wanted: bool) -> Self {
        Self { wanted, bar: None }
    }

    pub fn show(&mut self, mirror: &str, sync: Option<&SyncStatus>) {
        let Some(sync) = sync.filter(|_| self.wanted) else {
            self.clear();
            return;
        };
        let bar = self.bar.get_or_insert_with(|| {
            let style = ProgressStyle::with_template(
                "{prefix} [{bar:30}] {percent}% {bytes}/{total_bytes} {msg}",
            )
            .unwrap_or_else(|_| ProgressStyle::default_bar())
            .progress_chars("=>.");
            ProgressBar::new(sync.total_bytes).with_style(style)
        });
        bar.set_prefix(format!("{mirror} {}", sync.kind.name()));
        bar.set_length(sync.total_bytes);
        bar.set_position(sync.done_bytes);
        bar.set_message(if sync.paused {
            "paused".into()
        } else {
            let eta = sync.eta_s.map_or(String::new(), |eta| {
                format!(
                    ", {} left",
                    humantime::format_duration(std::time::Duration::from_secs(eta))
                )
            });
            format!("{}/s{eta}", bytes(sync.rate_bytes_per_s))
        });
    }

    pub fn clear(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.clear();
    }
}

/// An amount for people.
pub fn bytes(amount: u64) -> String {
    indicatif::BinaryBytes(amount).to_string()
}
