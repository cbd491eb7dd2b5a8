//! How fast a resync goes, for progress reports. Nothing is decided by it.

/// Shortest stretch that is measured: ticks may come after a millisecond, in which a step ended or none did.
const SAMPLE_MS: u64 = 50;
/// Weight of the newest stretch in the rate, as 1 / 2^n.
const RATE_SHIFT: u32 = 3;

#[derive(Debug)]
pub struct Meter {
    since_ms: u64,
    bytes: u64,
    rate_bytes_per_s: u64,
}

impl Meter {
    pub fn new(now_ms: u64) -> Self {
        Self {
            since_ms: now_ms,
            bytes: 0,
            rate_bytes_per_s: 0,
        }
    }

    pub fn tick(&mut self, now_ms: u64) {
        let elapsed_ms = now_ms.saturating_sub(self.since_ms);
        if elapsed_ms < SAMPLE_MS {
            return;
        }
        let sample = self.bytes.saturating_mul(1000) / elapsed_ms;
        self.since_ms = now_ms;
        self.bytes = 0;
        self.rate_bytes_per_s = if self.rate_bytes_per_s == 0 {
            sample
        } else {
            self.rate_bytes_per_s - (self.rate_bytes_per_s >> RATE_SHIFT) + (sample >> RATE_SHIFT)
        };
    }

    pub fn done(&mut self, bytes: u64) {
        self.bytes = self.bytes.saturating_add(bytes);
    }

    pub fn rate_bytes_per_s(&self) -> u64 {
        self.rate_bytes_per_s
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_length_of_ticks_does_not_matter() {
        for tick_ms in [1, 7, 100] {
            let mut meter = Meter::new(0);
            for now_ms in (0..20_000).step_by(tick_ms as usize) {
                meter.tick(now_ms);
                // Steps end at once, and then none does for a while.
                if now_ms % 100 < tick_ms {
                    meter.done(100_000);
                }
            }
            let rate = meter.rate_bytes_per_s();
            assert!((900_000..1_100_000).contains(&rate), "{rate}");
        }
    }
}
