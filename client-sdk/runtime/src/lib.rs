//! The client's I/O edge, shared by the SDKs of both languages.
