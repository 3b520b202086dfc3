//! The NBD protocol, fixed newstyle: numbers, the handshake and the headers of requests.
//!
//! <https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md>

use std::io::{self, Read, Write};

const NBDMAGIC: u64 = 0x4e42_444d_4147_4943;
const IHAVEOPT: u64 = 0x4948_4156_454f_5054;
const OPTION_REPLY: u64 = 0x0003_e889_0455_65a9;
const REQUEST: u32 = 0x2560_9513;
const SIMPLE_REPLY: u32 = 0x6744_6698;

/// Fixed newstyle, no zeroes after the export's size.
const HANDSHAKE_FLAGS: u16 = 1 | 2;
/// `HAS_FLAGS`, `SEND_FLUSH`, `SEND_FUA`, `SEND_TRIM`, `SEND_WRITE_ZEROES`.
const EXPORT_FLAGS: u16 = 1 | 4 | 8 | 32 | 64;

const REPLY_ACK: u32 = 1;
const REPLY_SERVER: u32 = 2;
const REPLY_INFO: u32 = 3;
const ERROR_UNSUPPORTED: u32 = 1 << 31 | 1;
const ERROR_INVALID: u32 = 1 << 31 | 3;
const ERROR_UNKNOWN: u32 = 1 << 31 | 6;

const INFO_EXPORT: u16 = 0;
const INFO_BLOCK_SIZE: u16 = 3;

/// Most bytes of one request.
pub(crate) const MOST_BYTES: u32 = 32 << 20;
/// Most bytes of an option: a name of 4096 and some.
const MOST_OPTION: u32 = 8192;
/// Most options before the client chooses.
const MOST_OPTIONS: usize = 64;

/// Flag of a request.
pub(crate) const FUA: u16 = 1;

/// Status of a reply.
pub(crate) const EIO: u32 = 5;
pub(crate) const EINVAL: u32 = 22;

/// The type of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Command {
    Read,
    Write,
    Disconnect,
    Flush,
    Trim,
    WriteZeroes,
    Unknown,
}

/// The header of a request.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Header {
    pub(crate) flags: u16,
    pub(crate) command: Command,
    pub(crate) cookie: u64,
    pub(crate) offset: u64,
    pub(crate) len: u32,
}

fn invalid(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.to_owned())
}

fn take<const N: usize>(client: &mut impl Read) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    client.read_exact(&mut bytes)?;
    Ok(bytes)
}

/// Negotiates the export `name`, of `size` bytes, until the client chooses it. False if the client
/// leaves.
///
/// # Errors
///
/// The connection failed, or the client breaks the protocol (`InvalidData`).
pub(crate) fn negotiate(
    client: &mut (impl Read + Write),
    name: &str,
    size: u64,
) -> io::Result<bool> {
    let mut hello = [NBDMAGIC, IHAVEOPT].map(u64::to_be_bytes).concat();
    hello.extend(HANDSHAKE_FLAGS.to_be_bytes());
    client.write_all(&hello)?;
    let flags = u32::from_be_bytes(take(client)?);
    if flags & !3 != 0 || flags & 1 == 0 {
        return Err(invalid("flags of the client"));
    }
    for _ in 0..MOST_OPTIONS {
        if u64::from_be_bytes(take(client)?) != IHAVEOPT {
            return Err(invalid("magic of an option"));
        }
        let option = u32::from_be_bytes(take(client)?);
        let len = u32::from_be_bytes(take(client)?);
        if len > MOST_OPTION {
            return Err(invalid("length of an option"));
        }
        let mut data = vec![0; len as usize];
        client.read_exact(&mut data)?;
        match option {
            1 if data == name.as_bytes() => {
                let mut reply = size.to_be_bytes().to_vec();
                reply.extend(EXPORT_FLAGS.to_be_bytes());
                if flags & 2 == 0 {
                    reply.extend([0; 124]);
                }
                client.write_all(&reply)?;
                return Ok(true);
            }
            1 => return Err(invalid("name of the export")),
            2 => {
                reply_option(client, option, REPLY_ACK, &[])?;
                return Ok(false);
            }
            3 if data.is_empty() => {
                let len = u32::try_from(name.len()).map_err(|_| invalid("name"))?;
                let entry = [&len.to_be_bytes(), name.as_bytes()].concat();
                reply_option(client, option, REPLY_SERVER, &entry)?;
                reply_option(client, option, REPLY_ACK, &[])?;
            }
            6 | 7 => match asked_name(&data) {
                None => reply_option(client, option, ERROR_INVALID, &[])?,
                Some(asked) if asked != name.as_bytes() => {
                    reply_option(client, option, ERROR_UNKNOWN, &[])?;
                }
                Some(_) => {
                    describe(client, option, size)?;
                    if option == 7 {
                        return Ok(true);
                    }
                }
            },
            3 => reply_option(client, option, ERROR_INVALID, &[])?,
            _ => reply_option(client, option, ERROR_UNSUPPORTED, &[])?,
        }
    }
    Err(invalid("number of options"))
}

/// The name in the data of `NBD_OPT_INFO` and `NBD_OPT_GO`, which must be well-formed.
fn asked_name(data: &[u8]) -> Option<&[u8]> {
    let (len, rest) = data.split_first_chunk::<4>()?;
    let (name, rest) = rest.split_at_checked(usize::try_from(u32::from_be_bytes(*len)).ok()?)?;
    let (count, infos) = rest.split_first_chunk::<2>()?;
    (infos.len() == 2 * usize::from(u16::from_be_bytes(*count))).then_some(name)
}

fn describe(client: &mut impl Write, option: u32, size: u64) -> io::Result<()> {
    let mut export = INFO_EXPORT.to_be_bytes().to_vec();
    export.extend(size.to_be_bytes());
    export.extend(EXPORT_FLAGS.to_be_bytes());
    reply_option(client, option, REPLY_INFO, &export)?;
    let mut blocks = INFO_BLOCK_SIZE.to_be_bytes().to_vec();
    blocks.extend([512, 4096, MOST_BYTES].map(u32::to_be_bytes).concat());
    reply_option(client, option, REPLY_INFO, &blocks)?;
    reply_option(client, option, REPLY_ACK, &[])
}

fn reply_option(client: &mut impl Write, option: u32, kind: u32, data: &[u8]) -> io::Result<()> {
    let len = u32::try_from(data.len()).map_err(|_| invalid("reply"))?;
    let mut reply = OPTION_REPLY.to_be_bytes().to_vec();
    reply.extend([option, kind, len].map(u32::to_be_bytes).concat());
    reply.extend(data);
    client.write_all(&reply)
}

/// Reads the header of the next request; `None` at the end of the connection.
///
/// # Errors
///
/// The connection failed, or the client breaks the protocol (`InvalidData`).
pub(crate) fn read_header(client: &mut impl Read) -> io::Result<Option<Header>> {
    let mut bytes = [0; 28];
    match client.read_exact(&mut bytes) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        result => result?,
    }
    let mut rest = &bytes[..];
    if u32::from_be_bytes(take(&mut rest)?) != REQUEST {
        return Err(invalid("magic of a request"));
    }
    let flags = u16::from_be_bytes(take(&mut rest)?);
    let command = match u16::from_be_bytes(take(&mut rest)?) {
        0 => Command::Read,
        1 => Command::Write,
        2 => Command::Disconnect,
        3 => Command::Flush,
        4 => Command::Trim,
        6 => Command::WriteZeroes,
        _ => Command::Unknown,
    };
    let cookie = u64::from_be_bytes(take(&mut rest)?);
    let offset = u64::from_be_bytes(take(&mut rest)?);
    let len = u32::from_be_bytes(take(&mut rest)?);
    Ok(Some(Header { flags, command, cookie, offset, len }))
}

/// The header of a reply, which the data of a successful read follows.
pub(crate) fn reply_header(cookie: u64, status: u32) -> Vec<u8> {
    let mut reply = [SIMPLE_REPLY, status].map(u32::to_be_bytes).concat();
    reply.extend(cookie.to_be_bytes());
    reply
}
