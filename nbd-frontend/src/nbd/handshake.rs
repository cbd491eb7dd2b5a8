//! The server's side of the fixed-newstyle handshake, without I/O.
//!
//! Bytes go in from the front of the driver's read buffer; each call takes whole options or
//! nothing, so that any division of the stream into reads has the same result. Answers are
//! appended to the driver's output. Everything a client may send is bounded: data of one option
//! ([`OPTION_BYTES_MAX`]), what is skipped of a larger one ([`SKIP_BYTES_MAX`]), and the number of
//! options ([`OPTIONS_MAX`]). The time limit is the driver's.
//!
//! A mirror that this node does not serve is listed, with the reason, and refused.

use super::info::ExportInfo;
use super::protocol::*;

/// Largest option data that is looked at. The longest legal name is 4 KiB.
pub const OPTION_BYTES_MAX: u32 = 8 << 10;
/// A larger option is skipped and refused up to here; beyond, the connection ends.
pub const SKIP_BYTES_MAX: u32 = 1 << 20;
/// Options of one handshake.
pub const OPTIONS_MAX: u32 = 64;

/// Shown by clients that came without TLS.
const TLS_REASON: &str = "this export is served over TLS only; connect with nbds:// (libnbd) or \
                          with tls-creds (QEMU)";

/// What the server does about TLS on a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tls {
    /// Not configured: asking for it is refused.
    Unavailable,
    /// Configured, and nothing else is allowed before it.
    Required,
    /// The connection is already inside it; [`Handshake::restart_inside_tls`] leads here.
    Established,
}

/// Transmission as it was agreed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Agreed {
    pub structured: bool,
    /// `base:allocation` was selected.
    pub allocation: bool,
}

impl Agreed {
    /// As old clients speak, the kernel among them.
    pub const PLAIN: Self = Self {
        structured: false,
        allocation: false,
    };
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// More bytes are needed.
    More,
    /// The next byte belongs to the first request.
    Transmission(Agreed),
    /// Once the output is sent, the next byte is TLS; carry on inside it with
    /// [`Handshake::restart_inside_tls`]. Whatever came in the clear behind the request is not to
    /// be trusted.
    StartTls,
    /// The client took its leave. Send the output and close.
    Aborted,
}

/// Why a handshake ends without agreement. The output that is there may still be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HandshakeError {
    #[error("client set unknown handshake flags {0:#x}")]
    ClientFlags(u32),
    #[error("client sent no NBD option where one was due; is it speaking NBD?")]
    OptionMagic,
    #[error("client sent an option of {0} bytes; the limit is {SKIP_BYTES_MAX}")]
    OptionTooLarge(u32),
    #[error("client sent more than {OPTIONS_MAX} options without starting")]
    TooManyOptions,
    #[error("client asked by the old command for an export that is not served here")]
    ExportRefused,
    #[error("client asked by the old command and without TLS; use a client that begins TLS")]
    TlsRequired,
}

#[derive(Debug)]
pub struct Handshake {
    tls: Tls,
    flags_due: bool,
    no_zeroes: bool,
    structured: bool,
    /// The export name for which `base:allocation` was selected.
    allocation_for: Option<Vec<u8>>,
    options: u32,
    skip_bytes: u32,
}

impl Handshake {
    /// Starts with the greeting in `output`.
    pub fn new(tls: Tls, output: &mut Vec<u8>) -> Self {
        output.extend(GREETING_MAGIC.to_be_bytes());
        output.extend(OPTION_MAGIC.to_be_bytes());
        output.extend((FLAG_FIXED_NEWSTYLE | FLAG_NO_ZEROES).to_be_bytes());
        Self {
            tls,
            flags_due: true,
            no_zeroes: false,
            structured: false,
            allocation_for: None,
            options: 0,
            skip_bytes: 0,
        }
    }

    /// The handshake that goes on inside TLS, with the first option due. Nothing that was agreed on
    /// in the clear holds any more; only the client's flags do, which are not sent again, and the
    /// count of options.
    pub fn restart_inside_tls(self) -> Self {
        Self {
            tls: Tls::Established,
            flags_due: false,
            no_zeroes: self.no_zeroes,
            structured: false,
            allocation_for: None,
            options: self.options,
            skip_bytes: 0,
        }
    }

    /// Takes what it can from the front of `input`; returns how many bytes and where it stands.
    pub fn receive(
        &mut self,
        input: &[u8],
        export: &ExportInfo,
        output: &mut Vec<u8>,
    ) -> Result<(usize, Progress), HandshakeError> {
        let mut taken = 0;
        loop {
            let (length, progress) = self.step(&input[taken..], export, output)?;
            taken += length;
            if length == 0 || progress != Progress::More {
                return Ok((taken, progress));
            }
        }
    }

    fn step(
        &mut self,
        input: &[u8],
        export: &ExportInfo,
        output: &mut Vec<u8>,
    ) -> Result<(usize, Progress), HandshakeError> {
        if self.skip_bytes > 0 {
            let length = input.len().min(self.skip_bytes as usize);
            self.skip_bytes -= length as u32;
            return Ok((length, Progress::More));
        }
        let mut fields = Fields(input);
        if self.flags_due {
            let Some(flags) = fields.u32() else {
                return Ok((0, Progress::More));
            };
            let known = u32::from(FLAG_FIXED_NEWSTYLE | FLAG_NO_ZEROES);
            if flags & !known != 0 {
                return Err(HandshakeError::ClientFlags(flags));
            }
            self.no_zeroes = flags & u32::from(FLAG_NO_ZEROES) != 0;
            self.flags_due = false;
            return Ok((4, Progress::More));
        }
        let (Some(magic), Some(option), Some(length)) = (fields.u64(), fields.u32(), fields.u32())
        else {
            return Ok((0, Progress::More));
        };
        if magic != OPTION_MAGIC {
            return Err(HandshakeError::OptionMagic);
        }
        if length > SKIP_BYTES_MAX {
            return Err(HandshakeError::OptionTooLarge(length));
        }
        if length > OPTION_BYTES_MAX {
            self.count_option()?;
            self.skip_bytes = length;
            if self.is_locked_for(option) {
                refuse(output, option, REP_ERR_TLS_REQD, TLS_REASON);
            } else {
                refuse(output, option, REP_ERR_TOO_BIG, "option data too long");
            }
            return Ok((OPTION_HEADER_BYTES, Progress::More));
        }
        let Some(data) = fields.bytes(length as usize) else {
            return Ok((0, Progress::More));
        };
        self.count_option()?;
        let progress = self.on_option(option, data, export, output)?;
        Ok((OPTION_HEADER_BYTES + data.len(), progress))
    }

    /// Whether TLS has to come before this option. The old command to start cannot be answered with
    /// an error and is refused in its own way.
    fn is_locked_for(&self, option: u32) -> bool {
        self.tls == Tls::Required && !matches!(option, OPT_STARTTLS | OPT_ABORT | OPT_EXPORT_NAME)
    }

    fn count_option(&mut self) -> Result<(), HandshakeError> {
        self.options += 1;
        if self.options > OPTIONS_MAX {
            return Err(HandshakeError::TooManyOptions);
        }
        Ok(())
    }

    fn on_option(
        &mut self,
        option: u32,
        data: &[u8],
        export: &ExportInfo,
        output: &mut Vec<u8>,
    ) -> Result<Progress, HandshakeError> {
        if self.is_locked_for(option) {
            refuse(output, option, REP_ERR_TLS_REQD, TLS_REASON);
            return Ok(Progress::More);
        }
        match option {
            OPT_EXPORT_NAME => return self.on_export_name(data, export, output),
            OPT_ABORT => {
                acknowledge(output, option);
                return Ok(Progress::Aborted);
            }
            OPT_STARTTLS => {
                if self.tls == Tls::Required && data.is_empty() {
                    acknowledge(output, option);
                    return Ok(Progress::StartTls);
                }
                let reason = match self.tls {
                    Tls::Unavailable => {
                        "TLS is not configured on this export; connect with nbd:// instead"
                    }
                    Tls::Required => "STARTTLS takes no data",
                    Tls::Established => "already inside TLS",
                };
                let error = match self.tls {
                    Tls::Unavailable => REP_ERR_POLICY,
                    Tls::Required | Tls::Established => REP_ERR_INVALID,
                };
                refuse(output, option, error, reason);
            }
            OPT_LIST if data.is_empty() => {
                let details = match &export.serving {
                    Ok(()) => export.description.clone(),
                    Err(reason) => format!("not served here: {reason}"),
                };
                let name = export.name.as_bytes();
                let mut reply = Vec::with_capacity(4 + name.len() + details.len());
                reply.extend((name.len() as u32).to_be_bytes());
                reply.extend(name);
                reply.extend(details.as_bytes());
                answer(output, option, REP_SERVER, &reply);
                acknowledge(output, option);
            }
            OPT_STRUCTURED_REPLY if data.is_empty() => {
                self.structured = true;
                acknowledge(output, option);
            }
            OPT_LIST | OPT_STRUCTURED_REPLY => {
                refuse(output, option, REP_ERR_INVALID, "this option takes no data");
            }
            OPT_INFO | OPT_GO => return Ok(self.on_info(option, data, export, output)),
            OPT_LIST_META_CONTEXT | OPT_SET_META_CONTEXT => {
                self.on_meta_context(option, data, export, output);
            }
            _ => refuse(output, option, REP_ERR_UNSUP, "option not supported"),
        }
        Ok(Progress::More)
    }

    /// The old way to start: there is no way to refuse but to hang up.
    fn on_export_name(
        &mut self,
        name: &[u8],
        export: &ExportInfo,
        output: &mut Vec<u8>,
    ) -> Result<Progress, HandshakeError> {
        if self.tls == Tls::Required {
            return Err(HandshakeError::TlsRequired);
        }
        if !is_name_of(export, name) || export.serving.is_err() {
            return Err(HandshakeError::ExportRefused);
        }
        output.extend(export.size_bytes.to_be_bytes());
        output.extend(transmission_flags(export, self.structured).to_be_bytes());
        if !self.no_zeroes {
            output.extend([0; 124]);
        }
        Ok(Progress::Transmission(self.agreed(name)))
    }

    fn on_info(
        &mut self,
        option: u32,
        data: &[u8],
        export: &ExportInfo,
        output: &mut Vec<u8>,
    ) -> Progress {
        let Some((name, wanted)) = parse_info(data) else {
            refuse(output, option, REP_ERR_INVALID, "malformed request");
            return Progress::More;
        };
        if !is_name_of(export, name) {
            let reason = format!("no such export; this server has \"{}\"", export.name);
            refuse(output, option, REP_ERR_UNKNOWN, &reason);
            return Progress::More;
        }
        if let Err(reason) = &export.serving {
            refuse(output, option, REP_ERR_POLICY, reason);
            return Progress::More;
        }
        let mut information = |kind: u16, body: &[u8]| {
            let reply = [&kind.to_be_bytes(), body].concat();
            answer(output, option, REP_INFO, &reply);
        };
        let mut size_and_flags = export.size_bytes.to_be_bytes().to_vec();
        size_and_flags.extend(transmission_flags(export, self.structured).to_be_bytes());
        information(INFO_EXPORT, &size_and_flags);
        if wanted.contains(&INFO_NAME) {
            information(INFO_NAME, export.name.as_bytes());
        }
        if wanted.contains(&INFO_DESCRIPTION) {
            information(INFO_DESCRIPTION, export.description.as_bytes());
        }
        if wanted.contains(&INFO_BLOCK_SIZE) {
            let sizes = [
                export.logical_block_bytes,
                BLOCK_BYTES_PREFERRED.max(export.logical_block_bytes),
                PAYLOAD_BYTES_MAX,
            ];
            information(INFO_BLOCK_SIZE, &sizes.map(u32::to_be_bytes).concat());
        }
        acknowledge(output, option);
        match option {
            OPT_GO => Progress::Transmission(self.agreed(name)),
            _ => Progress::More,
        }
    }

    fn on_meta_context(
        &mut self,
        option: u32,
        data: &[u8],
        export: &ExportInfo,
        output: &mut Vec<u8>,
    ) {
        let set = option == OPT_SET_META_CONTEXT;
        if set {
            self.allocation_for = None;
        }
        let Some((name, queries)) = parse_queries(data) else {
            return refuse(output, option, REP_ERR_INVALID, "malformed request");
        };
        if !self.structured {
            let reason = "structured replies must be negotiated first";
            return refuse(output, option, REP_ERR_INVALID, reason);
        }
        if !is_name_of(export, name) {
            let reason = format!("no such export; this server has \"{}\"", export.name);
            return refuse(output, option, REP_ERR_UNKNOWN, &reason);
        }
        let exact = queries.contains(&CONTEXT_ALLOCATION.as_bytes());
        let listed = !set && (queries.is_empty() || queries.contains(&&b"base:"[..]));
        if exact || listed {
            let number = if set { CONTEXT_ALLOCATION_ID } else { 0 };
            let reply = [&number.to_be_bytes(), CONTEXT_ALLOCATION.as_bytes()].concat();
            answer(output, option, REP_META_CONTEXT, &reply);
        }
        if set && exact {
            self.allocation_for = Some(name.to_vec());
        }
        acknowledge(output, option);
    }

    fn agreed(&self, name: &[u8]) -> Agreed {
        Agreed {
            structured: self.structured,
            allocation: self.allocation_for.as_deref() == Some(name),
        }
    }
}

/// The flags an export is announced with.
pub fn transmission_flags(export: &ExportInfo, structured: bool) -> u16 {
    let mut flags = HAS_FLAGS
        | SEND_FLUSH
        | SEND_FUA
        | SEND_TRIM
        | SEND_WRITE_ZEROES
        | SEND_CACHE
        | CAN_MULTI_CONN;
    if export.fast_zero {
        flags |= SEND_FAST_ZERO;
    }
    if structured {
        flags |= SEND_DF;
    }
    flags
}

/// The empty name asks for the default export: the only one.
fn is_name_of(export: &ExportInfo, name: &[u8]) -> bool {
    name.is_empty() || name == export.name.as_bytes()
}

fn parse_info(data: &[u8]) -> Option<(&[u8], Vec<u16>)> {
    let mut fields = Fields(data);
    let name = fields.string()?;
    let count = fields.u16()?;
    let wanted = (0..count).map(|_| fields.u16()).collect::<Option<_>>()?;
    fields.0.is_empty().then_some((name, wanted))
}

fn parse_queries(data: &[u8]) -> Option<(&[u8], Vec<&[u8]>)> {
    let mut fields = Fields(data);
    let name = fields.string()?;
    let count = fields.u32()?;
    // Each query takes four bytes at least, so a lying count ends the loop early.
    let mut queries = Vec::new();
    for _ in 0..count {
        queries.push(fields.string()?);
    }
    fields.0.is_empty().then_some((name, queries))
}

fn answer(output: &mut Vec<u8>, option: u32, kind: u32, data: &[u8]) {
    output.extend(OPTION_REPLY_MAGIC.to_be_bytes());
    output.extend(option.to_be_bytes());
    output.extend(kind.to_be_bytes());
    output.extend((data.len() as u32).to_be_bytes());
    output.extend(data);
}

fn acknowledge(output: &mut Vec<u8>, option: u32) {
    answer(output, option, REP_ACK, &[]);
}

/// `reason` is shown to people by most clients.
fn refuse(output: &mut Vec<u8>, option: u32, error: u32, reason: &str) {
    answer(output, option, error, reason.as_bytes());
}

#[cfg(test)]
mod tests;
