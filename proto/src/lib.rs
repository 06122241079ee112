//! The wire: protobuf services and messages, converted at the edge.
