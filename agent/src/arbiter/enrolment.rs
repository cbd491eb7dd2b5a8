//! What two nodes durably know of a mirror, made into the first record of an arbiter that knows nothing
//! of it: a new cluster, or one whose record was lost. Refuses wherever the two do not fit, because a
//! wrong record would let a node with old data become primary.

use std::collections::BTreeSet;
use std::fmt;

use mirror_core::units::Epoch;

use super::call::Claim;

/// What both claims together come to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Enrolment {
    /// The highest that either node knows.
    pub epoch: Epoch,
    /// Never empty.
    pub current: BTreeSet<String>,
    /// The node that is primary now; it counts as having been granted its epoch just now.
    pub holder: Option<String>,
}

/// Why two claims make no record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Misfit {
    BothPrimary,
    /// The primary serves under an epoch that the other knows to be over.
    PrimaryIsOld {
        primary: String,
        epoch: Epoch,
        newer: Epoch,
    },
    /// The primary serves data that the other calls outdated.
    PrimaryIsOutdated {
        primary: String,
    },
    /// Each calls the other's data outdated and its own up to date.
    EachCallsTheOtherOutdated,
    NobodyIsCurrent,
}

impl fmt::Display for Misfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BothPrimary => f.write_str("both are primary; stop the group on one of them"),
            Self::PrimaryIsOld {
                primary,
                epoch,
                newer,
            } => write!(
                f,
                "{primary} is primary under epoch {}, but epoch {} was granted since; demote {primary}",
                epoch.0, newer.0
            ),
            Self::PrimaryIsOutdated { primary } => write!(
                f,
                "{primary} is primary, but the other node calls its data outdated; \
                 `mirrorctl explain` shows the choice"
            ),
            Self::EachCallsTheOtherOutdated => f.write_str(
                "each calls the other's data outdated: a split brain, which \
                 `mirrorctl resync --discard-local` on one node resolves",
            ),
            Self::NobodyIsCurrent => f.write_str(
                "neither has data that is certain to be up to date; \
                 `mirrorctl group start --force` on one node makes its data the truth",
            ),
        }
    }
}

/// Two claims, each with its node's name. The order does not matter.
pub fn unite(claims: [(&str, Claim); 2]) -> Result<Enrolment, Misfit> {
    let [(_, first), (_, second)] = claims;
    if first.primary && second.primary {
        return Err(Misfit::BothPrimary);
    }
    let epoch = first.epoch.max(second.epoch);
    let pairs = [(claims[0], second), (claims[1], first)];
    for ((name, claim), other) in pairs {
        if !claim.primary {
            continue;
        }
        let primary = name.to_owned();
        if claim.epoch < epoch {
            return Err(Misfit::PrimaryIsOld {
                primary,
                epoch: claim.epoch,
                newer: epoch,
            });
        }
        // The other may still say so of data that this node has caught up with, but only where the
        // other holds the truth itself.
        if other.peer_outdated && other.current {
            return Err(Misfit::PrimaryIsOutdated { primary });
        }
    }
    if [first, second]
        .iter()
        .all(|claim| claim.current && claim.peer_outdated)
    {
        return Err(Misfit::EachCallsTheOtherOutdated);
    }
    let current: BTreeSet<String> = pairs
        .iter()
        .filter(|((_, claim), other)| claim.current && !other.peer_outdated)
        .map(|((name, _), _)| (*name).to_owned())
        .collect();
    if current.is_empty() {
        return Err(Misfit::NobodyIsCurrent);
    }
    let holder = claims
        .iter()
        .find(|(_, claim)| claim.primary)
        .map(|(name, _)| (*name).to_owned());
    Ok(Enrolment {
        epoch,
        current,
        holder,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `c` current, `o` the peer is outdated, `p` primary.
    fn claim(flags: &str, epoch: u64) -> Claim {
        Claim {
            epoch: Epoch(epoch),
            current: flags.contains('c'),
            peer_outdated: flags.contains('o'),
            primary: flags.contains('p'),
        }
    }

    const FLAGS: [&str; 8] = ["", "p", "o", "op", "c", "cp", "co", "cop"];

    /// The outcome as one word: who is current, with `*` at the holder, or why not.
    fn outcome(a: Claim, b: Claim) -> String {
        match unite([("a", a), ("b", b)]) {
            Ok(enrolment) => {
                let mut word: String = enrolment.current.into_iter().collect();
                if let Some(holder) = enrolment.holder {
                    word = format!("{word}*{holder}");
                }
                word
            }
            Err(Misfit::BothPrimary) => "both".into(),
            Err(Misfit::PrimaryIsOld { .. }) => "old".into(),
            Err(Misfit::PrimaryIsOutdated { .. }) => "outdated".into(),
            Err(Misfit::EachCallsTheOtherOutdated) => "split".into(),
            Err(Misfit::NobodyIsCurrent) => "nobody".into(),
        }
    }

    /// Rows: what `a` claims. Columns: what `b` claims. Both in the order of [`FLAGS`], equal epochs.
    const TABLE: [[&str; 8]; 8] = [
        // b: -       p           o         op          c        cp         co          cop
        [
            "nobody", "nobody", "nobody", "nobody", "b", "b*b", "b", "b*b",
        ], // a: -
        [
            "nobody", "both", "nobody", "both", "b*a", "both", "outdated", "both",
        ], // p
        [
            "nobody", "nobody", "nobody", "nobody", "nobody", "nobody", "nobody", "nobody",
        ], // o
        [
            "nobody", "both", "nobody", "both", "nobody", "both", "outdated", "both",
        ], // op
        ["a", "a*b", "nobody", "nobody", "ab", "ab*b", "b", "b*b"], // c
        [
            "a*a", "both", "nobody", "both", "ab*a", "both", "outdated", "both",
        ], // cp
        [
            "a", "outdated", "nobody", "outdated", "a", "outdated", "split", "outdated",
        ], // co
        [
            "a*a", "both", "nobody", "both", "a*a", "both", "outdated", "both",
        ], // cop
    ];

    #[test]
    fn every_pair_of_claims_has_its_row() {
        for (row, a) in FLAGS.iter().enumerate() {
            for (column, b) in FLAGS.iter().enumerate() {
                assert_eq!(
                    outcome(claim(a, 5), claim(b, 5)),
                    TABLE[row][column],
                    "a claims {a:?}, b claims {b:?}"
                );
            }
        }
    }

    #[test]
    fn the_order_of_the_claims_does_not_matter() {
        for a in FLAGS {
            for b in FLAGS {
                for epochs in [(4, 5), (5, 5), (6, 5)] {
                    let (a, b) = (claim(a, epochs.0), claim(b, epochs.1));
                    assert_eq!(unite([("a", a), ("b", b)]), unite([("b", b), ("a", a)]));
                }
            }
        }
    }

    #[test]
    fn the_epoch_is_the_highest_known_and_a_primary_under_a_lower_one_fits_nothing() {
        for a in FLAGS {
            for b in FLAGS {
                let (a, b) = (claim(a, 4), claim(b, 5));
                match outcome(a, b).as_str() {
                    "both" => assert!(a.primary && b.primary),
                    "old" => assert!(a.primary),
                    word => {
                        assert!(!a.primary);
                        assert_eq!(
                            word,
                            outcome(
                                Claim {
                                    epoch: b.epoch,
                                    ..a
                                },
                                b
                            )
                        );
                    }
                }
                if let Ok(enrolment) = unite([("a", a), ("b", b)]) {
                    assert_eq!(enrolment.epoch, Epoch(5));
                }
            }
        }
    }
}
