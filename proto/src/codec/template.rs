//! Task templates travel as bytes inside each task and are read and written once.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use cluster_types::{Map, TaskTemplate};

use super::task::{template_from_wire, template_to_wire};
use super::{malformed, put};
use crate::limits::MAX_TEMPLATE;
use crate::{WireError, v1};

/// Templates remembered before all are forgotten; a program that makes functions in a loop must not fill memory.
const REMEMBERED: usize = 1_000;

/// Bytes of remembered templates before all are forgotten.
const REMEMBERED_BYTES: usize = 16 << 20;

/// Templates by the bytes they came as.
#[derive(Default)]
pub(super) struct TemplateReader {
    known: Map<Bytes, Arc<TaskTemplate>>,
    bytes: usize,
}

impl TemplateReader {
    pub(super) fn read(&mut self, bytes: &Bytes) -> Result<Arc<TaskTemplate>, WireError> {
        if let Some(template) = self.known.get(bytes) {
            return Ok(template.clone());
        }
        if bytes.len() > MAX_TEMPLATE {
            let (count, limit) = (bytes.len() as u64, MAX_TEMPLATE as u64);
            return Err(WireError::TooMany { field: "TaskSpec.template", count, limit });
        }
        // A copy: neither the map nor the template's own bytes may keep the frame.
        let bytes = Bytes::copy_from_slice(bytes);
        let wire = <v1::TaskTemplate as prost::Message>::decode(bytes.clone())
            .map_err(|error| malformed("task template", error))?;
        let template = Arc::new(template_from_wire(wire)?);
        if self.known.len() >= REMEMBERED || self.bytes + bytes.len() > REMEMBERED_BYTES {
            self.known.clear();
            self.bytes = 0;
        }
        self.bytes += bytes.len();
        self.known.insert(bytes, template.clone());
        Ok(template)
    }
}

/// The bytes of templates, by address. The map holds the template too, so the address stays its own.
#[derive(Default)]
pub(super) struct TemplateWriter {
    known: Map<usize, (Arc<TaskTemplate>, Bytes)>,
    bytes: usize,
}

impl TemplateWriter {
    pub(super) fn write(&mut self, template: &Arc<TaskTemplate>) -> Bytes {
        let address = Arc::as_ptr(template) as usize;
        if let Some((_, bytes)) = self.known.get(&address) {
            return bytes.clone();
        }
        let mut bytes = BytesMut::new();
        put(&template_to_wire(template), &mut bytes);
        let bytes = bytes.freeze();
        if self.known.len() >= REMEMBERED || self.bytes + bytes.len() > REMEMBERED_BYTES {
            self.known.clear();
            self.bytes = 0;
        }
        self.bytes += bytes.len();
        self.known.insert(address, (template.clone(), bytes.clone()));
        bytes
    }
}
