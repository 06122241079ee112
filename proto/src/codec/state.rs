//! What the head's store holds of actors and placement groups. Each entry stands by itself, its task template included.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use cluster_types::kept::{KeptActor, KeptDurable, KeptGroup};
use cluster_types::{Attempt, Lease, NodeId, Refs};

use super::common::{job_info, objects, objects_to_wire};
use super::task::{result, result_with_refs_to_wire, spec, spec_to_wire};
use super::{Codec, Reading, put, read};
use crate::error::Required;
use crate::{WireError, v1};

impl Codec {
    /// Appends an entry of the store.
    pub fn encode_kept_actor(&mut self, kept: &KeptActor, out: &mut BytesMut) {
        let wire = v1::KeptActor {
            spec: Some(spec_to_wire(&kept.spec, &mut self.write)),
            info: kept.info.as_ref().map(|info| info.as_ref().into()),
            value: kept.value.as_ref().map(result_with_refs_to_wire),
            restarts: kept.restarts,
            ended: kept.ended.map(|life| v1::EndedLife { term: life.term, n: life.n }),
            states: objects_to_wire(&kept.states),
        };
        put(&wire, out);
    }

    /// Reads an entry of the store.
    ///
    /// # Errors
    /// If the bytes are none.
    pub fn decode_kept_actor(&mut self, bytes: Bytes) -> Result<KeptActor, WireError> {
        let mut reading = Reading { templates: &mut self.read, frame: bytes.len() };
        let wire: v1::KeptActor = read(bytes, "stored actor")?;
        Ok(KeptActor {
            spec: Arc::new(spec(&mut reading, wire.spec.required("KeptActor.spec")?)?),
            info: wire.info.map(|info| job_info("KeptActor.info", Some(info))).transpose()?,
            value: wire.value.map(|value| result(&reading, value)).transpose()?,
            restarts: wire.restarts,
            ended: wire.ended.map(|life| Attempt { term: life.term, n: life.n }),
            states: objects::<Refs>("KeptActor.states", &wire.states)?.into_iter().collect(),
        })
    }

    /// Appends an entry of the store.
    pub fn encode_kept_group(&mut self, kept: &KeptGroup, out: &mut BytesMut) {
        let place = |place: &Option<(NodeId, Lease)>| v1::BundlePlace {
            node: place.as_ref().map(|(node, _)| node.0),
            lease: place.as_ref().map(|(_, lease)| lease.into()),
        };
        let wire = v1::KeptGroup {
            spec: Some(spec_to_wire(&kept.spec, &mut self.write)),
            info: kept.info.as_ref().map(|info| info.as_ref().into()),
            places: kept.places.iter().map(place).collect(),
        };
        put(&wire, out);
    }

    /// Reads an entry of the store.
    ///
    /// # Errors
    /// If the bytes are none.
    pub fn decode_kept_group(&mut self, bytes: Bytes) -> Result<KeptGroup, WireError> {
        let mut reading = Reading { templates: &mut self.read, frame: bytes.len() };
        let wire: v1::KeptGroup = read(bytes, "stored placement group")?;
        let place = |place: v1::BundlePlace| -> Result<Option<(NodeId, Lease)>, WireError> {
            let Some(node) = place.node else { return Ok(None) };
            Ok(Some((NodeId(node), place.lease.unwrap_or_default().try_into()?)))
        };
        Ok(KeptGroup {
            spec: Arc::new(spec(&mut reading, wire.spec.required("KeptGroup.spec")?)?),
            info: wire.info.map(|info| job_info("KeptGroup.info", Some(info))).transpose()?,
            places: wire.places.into_iter().map(place).collect::<Result<_, _>>()?,
        })
    }

    /// Appends an entry of the store.
    pub fn encode_kept_durable(kept: &KeptDurable, out: &mut BytesMut) {
        let wire = v1::KeptDurable {
            object: Some(kept.object.into()),
            writer: kept.writer.0,
            size: kept.size,
            contains: objects_to_wire(&kept.contains),
        };
        put(&wire, out);
    }

    /// Reads an entry of the store.
    ///
    /// # Errors
    /// If the bytes are none.
    pub fn decode_kept_durable(bytes: Bytes) -> Result<KeptDurable, WireError> {
        let wire: v1::KeptDurable = read(bytes, "stored durable object")?;
        Ok(KeptDurable {
            object: wire.object.required("KeptDurable.object")?.into(),
            writer: NodeId(wire.writer),
            size: wire.size,
            contains: objects("KeptDurable.contains", &wire.contains)?,
        })
    }
}
