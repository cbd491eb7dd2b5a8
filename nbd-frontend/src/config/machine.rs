//! What the file's defaults need to know about the host that reads it.

/// Whether the clocks of this host can be stopped from outside without it noticing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Machine {
    Physical,
    /// A guest, which its host can pause, or a host that could not be asked.
    Virtual,
}

impl Machine {
    /// Asks the processor; hypervisors announce themselves there.
    pub fn of_this_host() -> Self {
        Self::from_cpuinfo(&std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default())
    }

    /// Doubt counts as virtual: the stricter rules are right everywhere. ARM has no such flag, so
    /// that there every machine is in doubt.
    fn from_cpuinfo(text: &str) -> Self {
        let flags = text
            .lines()
            .find_map(|line| line.strip_prefix("flags")?.split_once(':'));
        match flags {
            Some((_, flags)) if !flags.split_whitespace().any(|flag| flag == "hypervisor") => {
                Self::Physical
            }
            _ => Self::Virtual,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_processor_that_shows_its_flags_and_no_hypervisor_is_physical() {
        for (text, expected) in [
            (
                "processor\t: 0\nflags\t\t: fpu vme sse2\n",
                Machine::Physical,
            ),
            ("flags\t\t: fpu hypervisor sse2\n", Machine::Virtual),
            ("Features\t: fp asimd\n", Machine::Virtual),
            ("", Machine::Virtual),
        ] {
            assert_eq!(Machine::from_cpuinfo(text), expected, "{text:?}");
        }
    }
}
