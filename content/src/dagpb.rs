//! dag-pb, the outer format of a node: links, then data (IPLD specification "DAG-PB"). The encoder gives the canonical
//! form, `Links` before `Data`; the decoder borrows from the block. Knows nothing of files.

use crate::{
    Cid, Link, MAX_BLOCK_BYTES, MAX_LINKS,
    node::DecodeError,
    wire::{Fields, Value, WireError, put_bytes, put_number, put_varint, varint_len},
};

/// A decoded node, borrowing from its block.
#[derive(Debug)]
pub(crate) struct PbNode<'a> {
    pub(crate) links: Vec<PbLink<'a>>,
    pub(crate) data: &'a [u8],
}

/// A decoded link.
#[derive(Debug)]
pub(crate) struct PbLink<'a> {
    pub(crate) cid: Cid,
    pub(crate) name: &'a [u8],
    pub(crate) dag_size: Option<u64>,
}

impl<'a> PbNode<'a> {
    pub(crate) fn decode(block: &'a [u8]) -> Result<Self, DecodeError> {
        if block.len() > MAX_BLOCK_BYTES {
            return Err(DecodeError::BlockTooLarge(block.len()));
        }
        let mut links = Vec::new();
        let mut data = None;
        for field in Fields::new(block) {
            match field? {
                (1, Value::Bytes(bytes)) => {
                    if data.replace(bytes).is_some() {
                        return Err(DecodeError::Field("Data"));
                    }
                }
                (2, Value::Bytes(bytes)) => {
                    if links.len() == MAX_LINKS {
                        return Err(DecodeError::TooManyLinks);
                    }
                    links.push(PbLink::decode(bytes)?);
                }
                (number @ (1 | 2), _) => return Err(WireError::Type(number).into()),
                // The format knows no other fields, and readers refuse them so that a node has one reading.
                _ => return Err(DecodeError::Field("an unknown field")),
            }
        }
        Ok(Self { links, data: data.ok_or(DecodeError::NoData)? })
    }
}

impl<'a> PbLink<'a> {
    fn decode(message: &'a [u8]) -> Result<Self, DecodeError> {
        let (mut cid, mut name, mut dag_size) = (None, None, None);
        for field in Fields::new(message) {
            let again = match field? {
                (1, Value::Bytes(bytes)) => cid.replace(Cid::from_bytes(bytes)?).is_some(),
                (2, Value::Bytes(bytes)) => name.replace(bytes).is_some(),
                (3, Value::Varint(size)) => dag_size.replace(size).is_some(),
                (number @ 1..=3, _) => return Err(WireError::Type(number).into()),
                _ => return Err(DecodeError::Field("an unknown field of a link")),
            };
            if again {
                return Err(DecodeError::Field("a field of a link"));
            }
        }
        Ok(Self { cid: cid.ok_or(DecodeError::NoCid)?, name: name.unwrap_or_default(), dag_size })
    }
}

/// Length of a binary CIDv1 of ours.
const CID_BYTES: usize = 36;

/// Bytes that a link adds to the block of its node.
pub(crate) const fn link_len(name: usize, dag_size: u64) -> usize {
    let inner = inner_len(name, dag_size);
    1 + varint_len(inner as u64) + inner
}

/// Bytes that `data` adds to the block of its node.
pub(crate) const fn data_len(data: usize) -> usize {
    1 + varint_len(data as u64) + data
}

const fn inner_len(name: usize, dag_size: u64) -> usize {
    // go-merkledag, whose output is the reference, always writes the name, empty or not, and the size.
    (2 + CID_BYTES) + (1 + varint_len(name as u64) + name) + (1 + varint_len(dag_size))
}

/// Writes a node link by link.
pub(crate) struct Encoder(Vec<u8>);

impl Encoder {
    pub(crate) fn with_capacity(bytes: usize) -> Self {
        Self(Vec::with_capacity(bytes))
    }

    /// Adds a link; the caller keeps them in the order of their names. The name is `prefix` and `name` joined.
    pub(crate) fn link(&mut self, prefix: &str, name: &str, link: &Link) {
        let name_len = prefix.len() + name.len();
        let out = &mut self.0;
        out.push(0x12);
        put_varint(out, inner_len(name_len, link.dag_size) as u64);
        put_bytes(out, 1, &link.cid.to_array());
        out.push(0x12);
        put_varint(out, name_len as u64);
        out.extend_from_slice(prefix.as_bytes());
        out.extend_from_slice(name.as_bytes());
        put_number(out, 3, link.dag_size);
    }

    pub(crate) fn finish(mut self, data: &[u8]) -> Vec<u8> {
        put_bytes(&mut self.0, 1, data);
        self.0
    }
}
