//! As much of Redis' protocol as is needed: commands out, replies in.

use std::{
    io::{self, BufRead, BufReader, Write},
    net::TcpStream,
};

/// A connection that sends commands together once it is told to.
pub struct Connection {
    replies: BufReader<TcpStream>,
    commands: Vec<u8>,
}

#[derive(Debug, PartialEq, Eq)]
pub enum Reply {
    Nothing,
    Text(Vec<u8>),
    Number,
    List(Vec<Reply>),
}

impl Connection {
    pub fn open(address: &str) -> io::Result<Connection> {
        let stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        Ok(Connection { replies: BufReader::with_capacity(64 * 1024, stream), commands: Vec::new() })
    }

    /// Adds a command to those that [`Connection::flush`] will send.
    pub fn push(&mut self, words: &[&[u8]]) {
        self.commands.extend(format!("*{}\r\n", words.len()).bytes());
        for word in words {
            self.commands.extend(format!("${}\r\n", word.len()).bytes());
            self.commands.extend(*word);
            self.commands.extend(b"\r\n");
        }
    }

    pub fn flush(&mut self) -> io::Result<()> {
        self.replies.get_mut().write_all(&self.commands)?;
        self.commands.clear();
        Ok(())
    }

    /// The reply to the oldest command that has none yet.
    pub fn reply(&mut self) -> io::Result<Reply> {
        read(&mut self.replies)
    }

    pub fn call(&mut self, words: &[&[u8]]) -> io::Result<Reply> {
        self.push(words);
        self.flush()?;
        self.reply()
    }
}

fn read(from: &mut impl BufRead) -> io::Result<Reply> {
    let mut line = String::new();
    from.read_line(&mut line)?;
    let (kind, rest) = line.trim_end().split_at_checked(1).ok_or(io::ErrorKind::UnexpectedEof)?;
    let length = || rest.parse::<i64>().map_err(io::Error::other);
    match kind {
        "+" => Ok(Reply::Text(rest.as_bytes().to_vec())),
        "-" => Err(io::Error::other(rest.to_owned())),
        ":" => Ok(Reply::Number),
        "$" | "*" if length()? < 0 => Ok(Reply::Nothing),
        "$" => {
            let mut text = vec![0; length()? as usize + 2];
            from.read_exact(&mut text)?;
            text.truncate(text.len() - 2);
            Ok(Reply::Text(text))
        }
        "*" => (0..length()?).map(|_| read(from)).collect::<io::Result<_>>().map(Reply::List),
        _ => Err(io::Error::other(format!("not a reply: {line:?}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::{Reply, read};

    #[test]
    fn replies_are_read_whole() {
        let text = |text: &str| Reply::Text(text.into());
        let mut bytes: &[u8] = b"+OK\r\n:12\r\n$-1\r\n*2\r\n$3\r\na\r\n\r\n*1\r\n$0\r\n\r\n-ERR no\r\n";
        assert_eq!(read(&mut bytes).unwrap(), text("OK"));
        assert_eq!(read(&mut bytes).unwrap(), Reply::Number);
        assert_eq!(read(&mut bytes).unwrap(), Reply::Nothing);
        assert_eq!(read(&mut bytes).unwrap(), Reply::List(vec![text("a\r\n"), Reply::List(vec![text("")])]));
        assert_eq!(read(&mut bytes).unwrap_err().to_string(), "ERR no");
        assert!(read(&mut bytes).is_err(), "the connection is over");
    }
}
