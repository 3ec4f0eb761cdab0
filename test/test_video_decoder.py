# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Damaged streams: what is handed on is whole, the rest is counted, and after the next key picture all goes on."""

import random
from fractions import Fraction

import av
import numpy as np
import pytest

from slam3r_ros.bench.damage import decode, encode
from slam3r_ros.video import h264
from slam3r_ros.video.decoder import Decoder, padded
from slam3r_ros.video.picture import VideoError
from slam3r_ros.video.source import open_source
from slam3r_ros.video.streams import H264Stream, PacketStream

GOP, COUNT = 6, 18
KINDS = {
    'cabac': {'bf': '0'},
    'b-frames': {'bf': '3', 'b_strategy': '0'},
    'cavlc': {'profile': 'baseline'},
    'slices': {'bf': '0', 'slices': '3'},
    'high444': {'bf': '0', 'profile': 'high444', 'qp': '0'},
}
STREAMS = {name: encode(options, COUNT, gop=GOP) for name, options in KINDS.items()}
CLEAN = {name: decode(packets) for name, packets in STREAMS.items()}
each_kind = pytest.mark.parametrize('kind', KINDS)


def run(data, step=997):
    """Feed a byte stream in pieces; return its pictures, None for each lost, and their number."""
    stream = H264Stream('test')
    pieces = [data[at : at + step] for at in range(0, len(data), step)]
    pictures = [each for i, piece in enumerate(pieces) for each in stream.feed(piece, i)]
    return pictures + stream.flush(), stream.skipped


def numbers(pictures, kind):
    """Return which of the undamaged pictures each is; -1 for one that is none of them."""
    known = {image.tobytes(): i for i, image in enumerate(CLEAN[kind])}
    return [known.get(each.image.tobytes(), -1) for each in pictures if each is not None]


def damaged(kind, at, change):
    """Return the numbers of the pictures of a stream whose packet `at` was changed, and how many were skipped."""
    packets = list(STREAMS[kind])
    packets[at] = change(packets[at])
    pictures, skipped = run(b''.join(packets))
    return numbers(pictures, kind), skipped


def _decoding_order(kind):
    """Return the number of the picture in each packet."""
    context = av.CodecContext.create('h264', 'r')
    context.copy_opaque = True
    order, frames = [0] * COUNT, []
    for i, data in enumerate(STREAMS[kind]):
        packet = av.Packet(data)
        packet.opaque = i
        frames += context.decode(packet)
    for number, frame in enumerate(frames + context.decode(None)):
        order[frame.opaque] = number
    return order


@each_kind
@pytest.mark.parametrize('step', [1, 997, 1 << 20])
def test_pieces_cut_anywhere_give_every_picture_in_order(kind, step):
    pictures, skipped = run(b''.join(STREAMS[kind]), step)
    np.testing.assert_array_equal([each.image for each in pictures], CLEAN[kind])
    assert skipped == 0
    assert (np.diff([each.stamp for each in pictures]) >= 0).all()


@each_kind
@pytest.mark.parametrize('at', range(GOP, 2 * GOP))
def test_a_lost_packet_costs_what_needs_it_and_nothing_else(kind, at):
    found, skipped = damaged(kind, at, lambda data: b'')
    next_key = (at // GOP + 1) * GOP
    order = _decoding_order(kind)
    used = STREAMS[kind][at].split(b'\0\0\1')[-1][0] >> 5 & 3  # nal_ref_idc; nothing needs the others
    lost = order[at:next_key] if used else [order[at]]
    assert found == [i for i in range(COUNT) if i not in lost]
    assert skipped == len(lost) - 1  # nobody knows of the one that never came


@pytest.mark.parametrize('kind', [kind for kind in KINDS if kind != 'slices'])  # those have a test of their own
@pytest.mark.parametrize('share', [0.1, 0.5, 0.9])
@pytest.mark.parametrize('at', [0, 1, 7, 12])
def test_a_cut_packet_is_never_shown(kind, share, at):
    order = _decoding_order(kind)
    found, skipped = damaged(kind, at, lambda data: data[: round(share * len(data))])
    assert found == [i for i in range(COUNT) if i not in order[at : (at // GOP + 1) * GOP]]
    assert COUNT - len(found) - 1 <= skipped <= COUNT - len(found)


@pytest.mark.parametrize('slice', range(3))
@pytest.mark.parametrize('at', [0, 3, 8])
def test_a_lost_slice_is_never_shown(at, slice):
    def change(data):
        units = data.split(b'\0\0\1')
        del units[len(units) - 3 + slice]
        return b'\0\0\1'.join(units)

    found, skipped = damaged('slices', at, change)
    next_key = (at // GOP + 1) * GOP
    first = at - 1 if slice == 0 and at else at  # without its first slice, the rest looks like that of the one before
    assert found == [*range(first), *range(next_key, COUNT)]
    assert skipped == next_key - at


@each_kind
def test_noise_in_a_picture_ends_with_the_next_key_picture(kind):
    """H.264 has no checksums: CABAC makes something of any bits, and in a small picture may reach its end with them."""
    for at in range(1, COUNT):
        rng = random.Random(at)

        def change(data):
            middle = len(data) // 2
            return data[:middle] + rng.randbytes(len(data) - middle)  # noqa: B023

        found, skipped = damaged(kind, at, change)
        whole = [i for i in found if i >= 0]
        next_key = (at // GOP + 1) * GOP
        assert {*range(next_key, COUNT)} <= set(whole) and sorted(whole) == whole
        assert len(found) + skipped == COUNT
        if kind == 'cavlc':
            assert -1 not in found and skipped >= 1


def test_the_picture_after_a_fault_is_not_torn_by_what_is_left_of_it():
    """FFmpeg keeps coefficients of the block that broke: without a new decoder the next key picture shows them."""
    packets = encode({'profile': 'baseline'}, 12, (128, 96))
    clean = {image.tobytes() for image in decode(packets)}
    for at in range(1, 6):
        for cut in range(14, len(packets[at]), 8):
            data = b''.join([*packets[:at], packets[at][:cut], *packets[at + 1 :]])
            pictures, _ = run(data)
            assert {each.image.tobytes() for each in pictures if each is not None} <= clean, (at, cut)


@each_kind
def test_nothing_is_shown_before_the_first_key_picture(kind):
    pictures, skipped = run(b''.join(STREAMS[kind][2:]))
    assert numbers(pictures, kind) == [*range(GOP, COUNT)]
    assert skipped == GOP - 2


@pytest.mark.parametrize('missing', [h264._SPS, h264._PPS])
def test_a_key_picture_without_its_parameter_sets_is_skipped(missing):
    def without(data):
        return h264.annex_b([unit for unit in h264.split_annex_b(data) if unit[0] & 31 != missing])

    packets = [*map(without, STREAMS['cabac'][:GOP]), *STREAMS['cabac'][GOP:]]
    pictures, skipped = run(b''.join(packets))
    assert numbers(pictures, 'cabac') == [*range(GOP, COUNT)]
    assert skipped == GOP


@pytest.mark.parametrize('of_type', [h264._SPS, h264._PPS])
def test_a_key_picture_whose_parameter_set_was_cut_is_skipped(of_type):
    def cut(data):
        return h264.annex_b([
            unit[: len(unit) - 1] if unit[0] & 31 == of_type else unit for unit in h264.split_annex_b(data)
        ])  # fmt: skip

    packets = STREAMS['cabac'][:GOP] + [cut(STREAMS['cabac'][GOP])] + STREAMS['cabac'][GOP + 1 :]
    pictures, skipped = run(b''.join(packets))
    assert numbers(pictures, 'cabac') == [*range(GOP), *range(2 * GOP, COUNT)]
    assert skipped == GOP


def test_slices_of_two_pictures_are_never_shown_as_one():
    """When a loss takes the end of one picture and the beginning of the next."""
    units = [b'\0\0\1' + unit for data in STREAMS['slices'] for unit in data.split(b'\0\0\1')[1:]]
    slices = [i for i, unit in enumerate(units) if unit[3] & 31 in (h264._SLICE, h264._IDR)]
    for first in range(3 * GOP + 4, 3 * GOP + 10):  # in the second group of pictures
        pictures, _ = run(b''.join(units[: slices[first]] + units[slices[first + 2] + 1 :]))
        found = numbers(pictures, 'slices')
        assert -1 not in found, first
        assert found[-GOP:] == [*range(2 * GOP, COUNT)]


def test_parameter_sets_that_came_once_hold_after_a_fault():
    def without(data):
        return h264.annex_b([unit for unit in h264.split_annex_b(data) if unit[0] & 31 not in (h264._SPS, h264._PPS)])

    packets = [STREAMS['cabac'][0], *map(without, STREAMS['cabac'][1:])]
    packets[3] = packets[3][:20]
    pictures, _ = run(b''.join(packets))
    assert numbers(pictures, 'cabac') == [0, 1, 2, *range(GOP, COUNT)]


def _through_a_file(packets, tmp_path):
    source = open_source(write(tmp_path / 'a.mkv', packets))
    return list(source), source.skipped


def _through_messages(packets, tmp_path):
    stream = PacketStream('test')
    pictures = [each for i, data in enumerate(packets) for each in stream.feed(data, 'h264', i)] + stream.flush()
    return pictures, pictures.count(None)


@pytest.mark.parametrize('through', [
    lambda packets, _: run(b''.join(packets)), _through_a_file, _through_messages,
], ids=['byte stream', 'file', 'messages'])  # fmt: skip
def test_32_bad_packets_in_a_row(through, tmp_path):
    rng = random.Random(1)
    noise = [b'\0\0\0\1\x41\x9a' + rng.randbytes(200) for _ in range(32)]
    packets = STREAMS['cabac'][:8] + noise + STREAMS['cabac'][8:]
    pictures, skipped = through(packets, tmp_path)
    assert numbers(pictures, 'cabac') == [*range(8), *range(2 * GOP, COUNT)]
    assert skipped >= 32


@each_kind
def test_a_packet_that_comes_twice_is_shown_once(kind):
    packets = STREAMS[kind][:3] + STREAMS[kind][2:]
    found = numbers(run(b''.join(packets))[0], kind)
    assert -1 not in found and len(found) == len(set(found)) and set(found) >= {*range(GOP, COUNT)}


def test_another_resolution_comes_out_as_such():
    small, large = STREAMS['b-frames'], encode({}, 6, (128, 96))
    pictures, skipped = run(b''.join(small + large))
    assert [each.image.shape for each in pictures] == [(64, 96, 3)] * COUNT + [(96, 128, 3)] * 6
    assert skipped == 0


def test_another_codec_in_the_stream_is_skipped_until_the_first_comes_back():
    other = encode({'x265-params': 'log-level=none:bframes=0'}, 6, codec='libx265')
    packets = STREAMS['cabac'][:6] + other + STREAMS['cabac'][6:]
    found = numbers(run(b''.join(packets))[0], 'cabac')
    assert -1 not in found and set(found) >= {*range(5), *range(2 * GOP, COUNT)}


def test_a_stream_without_end_of_a_picture_keeps_its_memory_bounded():
    units = h264.AccessUnits()
    piece = bytes([1]) * (1 << 20)
    assert not list(units.feed(b'\0\0\1\x65\x80' + piece, 0))
    for _ in range(20):
        assert not list(units.feed(piece, 0))
        assert len(units._data) <= h264.MAX_UNIT
    assert units.overflows == 1
    small = h264.AccessUnits()
    for _ in range(20):
        list(small.feed(b'\0\0\1\x0c\x80' * (1 << 16), 0))
    assert len(small._units) < h264.MAX_UNIT // h264._OVERHEAD


def test_too_large_pictures_are_not_decoded():
    data = encode({'preset': 'ultrafast'}, 1, (4096, 2320))[0]
    pictures, skipped = run(data + STREAMS['cabac'][0])
    assert numbers(pictures, 'cabac') == [0] and skipped == 1


def test_too_small_pictures_are_refused():
    with pytest.raises(VideoError, match='test: is 48x32, too small'):
        run(b''.join(encode({}, 3, (48, 32))))


@pytest.mark.parametrize('encoding, options', [
    ('h264', {'bf': '3', 'b_strategy': '0'}), ('libx264;yuv420p;bgr8;bgr8', {}),
    ('h265', {'x265-params': 'log-level=none'}), ('hevc_nvenc', {'x265-params': 'log-level=none:bframes=0'}),
    ('vp9', {'lag-in-frames': '0', 'deadline': 'realtime'}), ('av1', {'preset': '12', 'svtav1-params': 'lad=0'}),
])  # fmt: skip
def test_packets_of_messages_keep_their_stamps(encoding, options):
    codec = {'h2': 'libx264', 'li': 'libx264', 'vp': 'libvpx-vp9', 'av': 'libsvtav1'}.get(encoding[:2], 'libx265')
    codec = 'libx265' if encoding == 'h265' else codec
    if codec not in av.codecs_available:
        pytest.skip(f'this FFmpeg has no {codec}')
    packets = encode(options, 12, codec=codec)
    stream = PacketStream('test')
    order = [1000 + i for i in range(len(packets))]
    pictures = [each for stamp, data in zip(order, packets) for each in stream.feed(data, encoding, stamp)]
    pictures += stream.flush()
    assert None not in pictures and len(pictures) == 12
    assert sorted(each.stamp for each in pictures) == order


@pytest.mark.parametrize('encoding, codec, options', [
    ('hevc', 'libx265', {'x265-params': 'log-level=none:bframes=0:keyint=6:min-keyint=6:repeat-headers=1'}),
    ('vp8', 'libvpx', {'lag-in-frames': '0', 'deadline': 'realtime', 'keyint_min': '6'}),
    ('vp9', 'libvpx-vp9', {'lag-in-frames': '0', 'deadline': 'realtime'}),
    ('av1', 'libsvtav1', {'preset': '12', 'svtav1-params': 'lad=0'}), ('mpeg4', 'mpeg4', {}),
])  # fmt: skip
def test_nothing_of_any_codec_is_shown_before_its_first_key_picture(encoding, codec, options):
    if codec not in av.codecs_available:
        pytest.skip(f'this FFmpeg has no {codec}')
    packets = encode(options, COUNT, gop=GOP, codec=codec)
    whole, late = PacketStream('test'), PacketStream('test')
    clean = [each for i, data in enumerate(packets) for each in whole.feed(data, encoding, i)] + whole.flush()
    pictures = [each for i, data in enumerate(packets[3:], 3) for each in late.feed(data, encoding, i)] + late.flush()
    shown = [each for each in pictures if each is not None]
    assert [each.stamp for each in shown] == [*range(GOP, COUNT)] and pictures.count(None) == GOP - 3
    np.testing.assert_array_equal([each.image for each in shown], [each.image for each in clean[GOP:]])


def test_what_lies_behind_a_packet_in_memory_is_not_taken_for_a_part_of_it():
    """FFmpeg's MPEG-4 decoder looks there for the next marker."""
    decoder, frames = Decoder.of('mpeg4'), []
    for data in encode({}, COUNT, gop=GOP, codec='mpeg4'):
        packet = padded(memoryview(data + b'\0' + b'\xff' * 64)[: len(data)])
        packet.is_keyframe = True
        frames += decoder.decode(packet)
    frames += decoder.flush()
    assert None not in frames and len(frames) == COUNT


@pytest.mark.parametrize('encoding, codec, options', [
    ('av1', 'libsvtav1', {'preset': '12', 'svtav1-params': 'lad=0:pred-struct=1'}), ('mpeg4', 'mpeg4', {}),
])  # fmt: skip
def test_a_cut_packet_of_other_codecs_is_never_shown(encoding, codec, options):
    if codec not in av.codecs_available:
        pytest.skip(f'this FFmpeg has no {codec}')
    packets = encode(options, COUNT, gop=GOP, codec=codec)
    whole, stream = PacketStream('test'), PacketStream('test')
    clean = {each.image.tobytes() for i, data in enumerate(packets) for each in whole.feed(data, encoding, i)}
    clean |= {each.image.tobytes() for each in whole.flush()}
    packets[8] = packets[8][: len(packets[8]) // 2]
    pictures = [each for i, data in enumerate(packets) for each in stream.feed(data, encoding, i)] + stream.flush()
    shown = [each for each in pictures if each is not None]
    assert {each.image.tobytes() for each in shown} <= clean
    assert [each.stamp for each in shown] == [*range(8), *range(2 * GOP, COUNT)]


def test_a_lost_packet_of_hevc_is_never_shown():
    packets = encode({'x265-params': 'log-level=none:bframes=0:keyint=6:min-keyint=6:repeat-headers=1'}, COUNT,
                     codec='libx265')  # fmt: skip
    whole = PacketStream('test')
    clean = {each.image.tobytes() for data in packets for each in whole.feed(data, 'hevc', 0)}
    stream = PacketStream('test')
    pictures = [each for data in packets[:2] + packets[3:] for each in stream.feed(data, 'hevc', 0)] + stream.flush()
    shown = [each.image.tobytes() for each in pictures if each is not None]
    assert set(shown) <= clean and len(shown) == COUNT - 4


def test_an_unknown_codec_is_refused():
    with pytest.raises(VideoError, match="/video: codec 'wmv9' is not supported; send h264"):
        PacketStream('/video').feed(b'x', 'wmv9', 0)


@pytest.mark.parametrize('hardware', ['cuda', 'abacus'])
def test_hardware_that_is_not_there_leaves_it_to_software(hardware):
    decoder = Decoder.of('h264', hardware)
    frames = [frame for data in STREAMS['cabac'] for frame in decoder.decode(av.Packet(data))] + decoder.flush()
    assert len(frames) == COUNT and decoder.skipped == 0


def write(path, packets, times=None, unit=Fraction(1, 90_000)):
    """Put H.264 packets into a file; `times` are those of presentation, in units."""
    with av.open(str(path), 'w') as container:
        stream = container.add_stream('libx264', rate=30)
        stream.width, stream.height, stream.time_base = 96, 64, unit
        stream.codec_context.extradata = h264.annex_b(
            [each for each in h264.split_annex_b(STREAMS['cabac'][0]) if each[0] & 31 in (h264._SPS, h264._PPS)]
        )
        for i, data in enumerate(packets):
            packet = av.Packet(data)
            packet.stream, packet.time_base = stream, unit
            packet.pts = packet.dts = times[i] if times else 3000 * i
            container.mux(packet)
    return str(path)


@pytest.mark.parametrize('suffix', ['mp4', 'mkv', 'ts'])
@pytest.mark.parametrize('change', [lambda data: data[: len(data) // 2], lambda data: data[:10]], ids=['half', 'head'])
def test_a_damaged_file_shows_whole_pictures_only(tmp_path, suffix, change):
    packets = list(STREAMS['cabac'])
    packets[8] = change(packets[8])
    source = open_source(write(tmp_path / f'a.{suffix}', packets))
    frames = list(source)
    assert numbers(frames, 'cabac') == [*range(8), *range(12, COUNT)]
    times = [i / 30 for i in (*range(8), *range(12, COUNT))]
    assert [frame.stamp / 1e9 for frame in frames] == pytest.approx(times, abs=0.001)  # Matroska counts milliseconds
    assert [frame.id for frame in frames] == [*range(8), *range(12, COUNT)]
    assert source.skipped == 4 and frames[-1].last


def test_two_hours_of_irregular_times_stay_exact(tmp_path):
    times = [0, 1, 90_000, *(90_000 * 7200 + 1000 * i * i for i in range(COUNT - 3))]
    frames = list(open_source(write(tmp_path / 'a.mp4', STREAMS['cabac'], times)))
    assert [frame.stamp for frame in frames] == [time * 10**9 // 90_000 for time in times]


def test_a_playlist_opens_nothing_else(tmp_path):
    write(tmp_path / 'a.ts', STREAMS['cabac'])
    (tmp_path / 'list.m3u8').write_text('#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\na.ts\n#EXT-X-ENDLIST\n')
    (tmp_path / 'list.ffconcat').write_text("ffconcat version 1.0\nfile 'a.ts'\n")
    for name in ('list.m3u8', 'list.ffconcat'):
        with pytest.raises(VideoError, match=f'{name}: is (a playlist of other files|not a video)'):
            open_source(str(tmp_path / name))
