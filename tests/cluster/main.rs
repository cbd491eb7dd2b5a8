//! Whole clusters: random faults from fixed and fresh seeds; the cases that every cluster must survive,
//! each by name; and the proof that the checker catches what it is there for.

mod cases;
mod failures;
mod mistakes;
mod scene;
mod seeds;
