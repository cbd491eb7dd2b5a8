//! The simulator's suite: the cases every mirror must survive, each by name; random worlds from fixed
//! and fresh seeds; and the proof that the checkers catch what they are there for.

mod ahead;
mod cases;
mod doubles;
mod lease_mistakes;
mod leases;
mod mutations;
mod outages;
mod rechecks;
mod resync;
mod seeds;
