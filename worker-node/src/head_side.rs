//! Where the head is.

use cluster_types::Incarnation;

use crate::head_link::HeadLink;

pub(crate) enum HeadSide {
    /// In this process, for one driver.
    Embedded {
        head: Box<head_core::Head>,
        /// What it admitted the node beside it as.
        incarnation: Incarnation,
    },
    /// Over gRPC.
    Remote(HeadLink),
}
