//! Compiles `cluster/v1/*.proto` with protox, so that no `protoc` need be installed.

use std::error::Error;
use std::path::Path;

fn main() -> Result<(), Box<dyn Error>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let files = ["common", "client", "node", "peer", "services", "state"]
        .map(|name| root.join("cluster/v1").join(name).with_extension("proto"));
    println!("cargo::rerun-if-changed=cluster/v1");
    let descriptors = protox::compile(&files, [root])?;
    tonic_prost_build::configure().bytes(".").btree_map(".").compile_fds(descriptors)?;
    Ok(())
}
