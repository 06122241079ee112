"""What an executor's prints become."""

import io

from concurrent_ml._lines import LINE_MAX, Lines


class Client:
    def __init__(self):
        self.sent = []

    def log(self, text, stderr, task, name):
        self.sent.append((text, stderr))


def lines(to_stderr=False):
    client = Client()
    return Lines(client, to_stderr), client.sent  # type: ignore[arg-type]


def test_whole_lines_go_out_when_they_end():
    out, sent = lines()
    print("one", 2, file=out)
    print("half", end="", file=out, flush=True)
    assert sent == [("one 2", False)]
    print(" and half\nlast", end="", file=out)
    out.finish()
    out.finish()
    assert sent[1:] == [("half and half", False), ("last", False)]


def test_of_a_progress_bar_the_last_state_is_shown():
    out, sent = lines(to_stderr=True)
    for percent in (0, 50, 100):
        out.write(f"\r{percent} %")
    out.write("\n")
    assert sent == [("100 %", True)]


def test_endless_lines_go_out_in_pieces():
    out, sent = lines()
    out.write("x" * (LINE_MAX + 1))
    assert len(sent) == 1


def test_bytes_may_be_written_too():
    out, sent = lines()
    out.buffer.write("é\n".encode())
    out.buffer.write(b"\xff\n")
    assert sent == [("é", False), ("�", False)]


def test_it_is_a_stream_like_others():
    out, _ = lines()
    assert isinstance(out, io.TextIOBase)
    assert out.writable()
    assert not out.isatty()
    assert (out.fileno(), out.encoding, out.name) == (1, "utf-8", "<stdout>")
