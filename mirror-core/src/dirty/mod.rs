//! What may differ between the two sides: the dirty bitmap and the activity log that bounds the
//! doubt after a crash.

pub mod activity_log;
pub mod bitmap;
pub mod block_set;
pub mod extent_set;
