//! The port for objects on their way between nodes: whatever a stranger sends, the server goes on.
#![no_main]

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use cluster_store::transfer::{DataServer, Key, ObjectSource, Opened, ServerConfig};
use libfuzzer_sys::fuzz_target;

struct OneObject;

impl ObjectSource for OneObject {
    fn open(&self, key: Key) -> Opened {
        if key == [7; 16] { Opened::Bytes(Bytes::from_static(b"seven")) } else { Opened::Missing }
    }
}

static SERVER: OnceLock<DataServer> = OnceLock::new();

fuzz_target!(|data: &[u8]| {
    let server = SERVER.get_or_init(|| {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let config = ServerConfig { handshake_timeout: Duration::from_millis(200), ..ServerConfig::default() };
        DataServer::start(listener, b"secret", Arc::new(OneObject), config).expect("it starts")
    });
    let mut stream = TcpStream::connect(server.address()).expect("it listens");
    stream.set_read_timeout(Some(Duration::from_secs(2))).expect("a timeout");
    let _ = stream.write_all(data);
    let _ = stream.shutdown(Shutdown::Write);
    let mut answer = Vec::new();
    let _ = stream.take(1 << 20).read_to_end(&mut answer);
});
