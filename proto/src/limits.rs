//! The most a peer may send. A message beyond a limit is refused, never half read.

/// Messages in one batch. A message takes at least two bytes on the wire and some two hundred in memory, so without
/// this a 64 MiB frame could become gigabytes.
pub const MAX_BATCH_MESSAGES: usize = 1 << 17;

/// Bytes of one encoded batch, and of one frame on a Unix socket.
pub const MAX_FRAME: usize = 64 << 20;

/// Bytes of payload in one gRPC frame; a longer batch is cut.
pub const MAX_GRPC_PAYLOAD: usize = 1 << 20;

/// Bytes of one gRPC message: a payload and its few fields.
pub const MAX_GRPC_MESSAGE: usize = MAX_GRPC_PAYLOAD + 1024;

/// Bytes that an encoder gathers in one frame before it begins another. A part of a large value is more, so that it is
/// the last of its frame, and mostly the only one.
pub const FRAME_TARGET: usize = 960 << 10;

/// Custom resources in one request, GPUs in one lease, entries in one map of variables or labels.
pub const MAX_ENTRIES: usize = 4096;

/// Bytes of one encoded task template.
pub const MAX_TEMPLATE: usize = 1 << 20;

/// Bytes of a pickled exception. Senders keep to 64 KiB; the rest is for its envelope.
pub const MAX_FAILURE_PAYLOAD: usize = 128 << 10;

/// Bytes of one chunk of a file that travels by content.
pub const CHUNK: usize = 1 << 20;

/// Bytes of a package's list of files, which is a chunk too.
pub const MAX_PACKAGE_LIST: usize = 16 << 20;

/// Names of chunks in one question.
pub const MAX_CHUNK_NAMES: usize = 1 << 16;
