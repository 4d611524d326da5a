//! Packets as a hostile guest would make them.

use std::net::Ipv4Addr;

use codius_pod::Protocol;

/// The first packet of a connection, or a datagram.
#[derive(Clone)]
pub(super) struct Frame {
    pub(super) source_mac: [u8; 6],
    pub(super) gateway_mac: [u8; 6],
    pub(super) source: Ipv4Addr,
    pub(super) source_port: u16,
    pub(super) address: Ipv4Addr,
    pub(super) port: u16,
    pub(super) protocol: Protocol,
    /// Bytes of a datagram.
    pub(super) padding: usize,
}

impl Frame {
    pub(super) fn bytes(&self) -> Vec<u8> {
        let mut payload = Vec::new();
        payload.extend(self.source_port.to_be_bytes());
        payload.extend(self.port.to_be_bytes());
        let number = match self.protocol {
            Protocol::Tcp => {
                payload.extend([0, 0, 0, 1, 0, 0, 0, 0, 0x50, 0x02, 0xff, 0xff, 0, 0, 0, 0]);
                6
            }
            Protocol::Udp => {
                let length = u16::try_from(8 + self.padding).unwrap();
                payload.extend(length.to_be_bytes());
                // No checksum.
                payload.extend([0, 0]);
                payload.resize(8 + self.padding, 0);
                17
            }
        };
        if self.protocol == Protocol::Tcp {
            let mut pseudo = [self.source.octets(), self.address.octets()].concat();
            pseudo.extend([0, 6]);
            pseudo.extend(u16::try_from(payload.len()).unwrap().to_be_bytes());
            let sum = checksum(&[pseudo, payload.clone()].concat());
            payload[16..18].copy_from_slice(&sum.to_be_bytes());
        }
        self.packet(number, &payload)
    }

    /// The same in two parts, of which the first has eight bytes.
    pub(super) fn fragments(&self) -> [Vec<u8>; 2] {
        const MORE: u16 = 0x2000;
        let whole = self.bytes();
        let (header, payload) = whole.split_at(14 + 20);
        let protocol = header[14 + 9];
        [
            self.part(protocol, MORE, &payload[..8]),
            self.part(protocol, 1, &payload[8..]),
        ]
    }

    pub(super) fn packet(&self, protocol: u8, payload: &[u8]) -> Vec<u8> {
        self.part(protocol, 0, payload)
    }

    pub(super) fn part(&self, protocol: u8, flags_and_offset: u16, payload: &[u8]) -> Vec<u8> {
        let length = u16::try_from(20 + payload.len()).unwrap();
        let mut header = vec![0x45, 0];
        header.extend(length.to_be_bytes());
        header.extend([0, 1]);
        header.extend(flags_and_offset.to_be_bytes());
        header.extend([64, protocol, 0, 0]);
        header.extend(self.source.octets());
        header.extend(self.address.octets());
        let sum = checksum(&header);
        header[10..12].copy_from_slice(&sum.to_be_bytes());
        self.ethernet(0x0800, &[&header, payload].concat())
    }

    pub(super) fn ethernet(&self, kind: u16, payload: &[u8]) -> Vec<u8> {
        let kind = kind.to_be_bytes();
        [&self.gateway_mac, &self.source_mac, &kind[..], payload].concat()
    }

    /// "`source` is at `hardware`": a request, as a machine that comes up sends it.
    pub(super) fn arp(&self, hardware: [u8; 6], source: Ipv4Addr) -> Vec<u8> {
        let head = [0, 1, 8, 0, 6, 4, 0, 1];
        let body = [
            &head[..],
            &hardware,
            &source.octets(),
            &[0; 6],
            &self.address.octets(),
        ];
        self.ethernet(0x0806, &body.concat())
    }
}

pub(super) fn checksum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2).map(|pair| {
        let low = pair.get(1).copied().unwrap_or(0);
        u32::from(u16::from_be_bytes([pair[0], low]))
    });
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap()
}

pub(super) fn parse_mac(text: &str) -> [u8; 6] {
    let bytes = text
        .split(':')
        .map(|byte| u8::from_str_radix(byte, 16).unwrap());
    bytes.collect::<Vec<_>>().try_into().unwrap()
}
