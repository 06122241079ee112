//! Ids, resources and the messages between the halves, as types.
