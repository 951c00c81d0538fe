//! What `move_pages` would show on real engines: a prediction from the published tables.
//!
//! Nobody here has an engine. The published tables say what one driver did on one machine; this
//! crate takes them apart and puts another driver together from the parts.
//!
//! - [`costs`] are the parts: per descriptor with and without a round trip, per byte of an engine
//!   and of the port that two engines share, per page of address translation, and S, everything but
//!   the copy. [`fit`] finds them in the tables ([`published`]); its result is `data/fitted.json`.
//! - [`sim`] has engines and ports in a virtual time; [`strategy`] has the published driver and
//!   ours on it. Ours keeps rings full, takes one channel of each port first, and cuts folios.
//! - [`table`] has the published cells beside the predicted ones, [`latency`] the time of calls by
//!   size, [`movers`] several movers at once, [`compaction`] the published experiment.
//! - [`assumptions`] tells fitted, assumed and measured costs apart.
//!
//! From 128K to 1M the published cost is flat per byte, and the tables do not tell why. Both
//! [hypotheses](costs::Hypothesis) are run, and a prediction is the range between them.
#![forbid(unsafe_code)]

pub mod assumptions;
pub mod compaction;
pub mod costs;
pub mod fit;
pub mod latency;
pub mod movers;
pub mod picture;
pub mod prediction;
pub mod published;
pub mod sim;
pub mod strategy;
pub mod table;
pub mod text;
