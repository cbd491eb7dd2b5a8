//! Which boot of the machine this is. What a disk has completed is lost at the earliest with the next one.

use std::fs;

use crate::units::Uuid;

const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// The kernel's random number for this boot; zero where it does not say.
pub(super) fn this_boot() -> Uuid {
    fs::read_to_string(BOOT_ID)
        .ok()
        .and_then(|text| parse(&text))
        .unwrap_or_default()
}

/// 32 digits, with dashes between.
fn parse(text: &str) -> Option<Uuid> {
    let digits: String = text.trim().chars().filter(|digit| *digit != '-').collect();
    let all_hex = digits.len() == 32 && digits.bytes().all(|digit| digit.is_ascii_hexdigit());
    let number = u128::from_str_radix(&digits, 16).ok();
    number
        .filter(|_| all_hex)
        .map(|number| Uuid(number.to_be_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_names_its_boot_and_always_the_same() {
        assert_ne!(this_boot(), Uuid::default());
        assert_eq!(this_boot(), this_boot());
    }

    #[test]
    fn what_is_no_name_of_a_boot_is_none() {
        let text = "0f1e2d3c-4b5a-6978-8796-a5b4c3d2e1f0\n";
        let name = parse(text).expect("a name");
        assert_eq!(name.to_string(), "0f1e2d3c4b5a69788796a5b4c3d2e1f0");
        for text in ["", "0f1e2d3c", "+f1e2d3c-4b5a-6978-8796-a5b4c3d2e1f0"] {
            assert_eq!(parse(text), None, "{text}");
        }
    }
}
