# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
import os
from fractions import Fraction

import av
import numpy as np
import pytest

from slam3r_ros.video.source import VideoError, open_source

SECOND = 1_000_000_000
RAMP = np.linspace(0, 60, 96, dtype=np.uint8)[None, :, None]


def image(i, size=(96, 64)):
    """A grey picture whose mean tells its number."""
    return np.full((size[1], size[0], 3), 20 + 8 * (i % 20), np.uint8) + np.resize(RAMP, (1, size[0], 1))


def number(frame):
    return round((float(frame.image.mean()) - 20 - 30) / 8)


def write(path, count=12, size=(96, 64), codec='libx264', times=None, options=None, format=None, pix_fmt='yuv420p'):
    with av.open(str(path), 'w', format=format) as container:
        stream = container.add_stream(codec, rate=10, options=options or {})
        stream.width, stream.height, stream.pix_fmt = *size, pix_fmt
        for i in range(count):
            frame = av.VideoFrame.from_ndarray(image(i, size), format='rgb24')
            # in hundredths of a second
            frame.pts, frame.time_base = (times[i] if times else 10 * i), Fraction(1, 100)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return str(path)


def test_frames_come_in_order_with_stamps_from_zero_and_an_end(tmp_path):
    # B-frames are stored in another order than they are shown.
    source = open_source(write(tmp_path / 'a.mp4', options={'bf': '3', 'b_strategy': '0'}))
    frames = list(source)
    source.close()
    assert [number(frame) for frame in frames] == list(range(12))
    assert [frame.id for frame in frames] == list(range(12))
    assert [frame.stamp for frame in frames] == [i * SECOND // 10 for i in range(12)]
    assert [frame.last for frame in frames] == [False] * 11 + [True]
    assert (source.fps, source.frames, source.skipped) == (10, 12, 0)
    assert frames[0].image.shape == (64, 96, 3) and frames[0].image.dtype == np.uint8
    assert frames[0].intrinsics is None


def test_the_offset_is_added(tmp_path):
    frames = list(open_source('file://' + write(tmp_path / 'a.mp4', 3), 5 * SECOND))
    assert [frame.stamp for frame in frames] == [5 * SECOND, 5 * SECOND + SECOND // 10, 5 * SECOND + SECOND // 5]


def test_stamps_follow_a_variable_frame_rate(tmp_path):
    times = [0, 4, 20, 21, 50]
    with av.open(str(tmp_path / 'a.mkv'), 'w') as container:
        stream = container.add_stream('mpeg4', rate=100)
        stream.width, stream.height, stream.pix_fmt = 96, 64, 'yuv420p'
        for i, time in enumerate(times):
            frame = av.VideoFrame.from_ndarray(image(i), format='rgb24')
            frame.pts, frame.time_base = time, Fraction(1, 100)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    assert [frame.stamp for frame in open_source(str(tmp_path / 'a.mkv'))] == [t * SECOND // 100 for t in times]


@pytest.mark.parametrize('name, codec, pix_fmt', [
    ('a.avi', 'mpeg4', 'yuv420p'), ('a.mkv', 'ffv1', 'yuv444p'), ('a.avi', 'mjpeg', 'yuvj420p'),
    ('a.mov', 'png', 'rgb24'),
])
def test_other_codecs_and_containers(tmp_path, name, codec, pix_fmt):
    frames = list(open_source(write(tmp_path / name, codec=codec, pix_fmt=pix_fmt)))
    assert [number(frame) for frame in frames] == list(range(12))
    assert frames[-1].stamp == 11 * SECOND // 10


def test_bare_h264_has_no_times_but_rising_stamps(tmp_path):
    frames = list(open_source(write(tmp_path / 'a.h264', format='h264', options={'bf': '2'})))
    assert [number(frame) for frame in frames] == list(range(12))
    assert (np.diff([frame.stamp for frame in frames]) > 0).all()


def test_a_turned_phone_is_turned_back(tmp_path):
    path = tmp_path / 'a.mp4'
    write(path, 2)
    data = path.read_bytes()
    upright = np.array([1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30], '>i4').tobytes()
    turned = np.array([0, 1 << 16, 0, -(1 << 16), 0, 0, 0, 0, 1 << 30], '>i4').tobytes()  # 90 degrees clockwise
    start = data.index(upright, data.index(b'tkhd'))
    path.write_bytes(data[:start] + turned + data[start + 36 :])
    frame = next(iter(open_source(str(path))))
    assert frame.image.shape == (96, 64, 3)
    assert frame.image[5].mean() + 30 < frame.image[-5].mean()  # the ramp, dark at the left, now is dark at the top


def test_damage_is_skipped_and_counted(tmp_path):
    path = tmp_path / 'a.avi'
    write(path, 12, codec='zlib', pix_fmt='bgr24')
    with av.open(str(path)) as container:
        chunks = [packet.pos for packet in container.demux(video=0) if packet.size]
    data = bytearray(path.read_bytes())
    for chunk in chunks[3:5]:
        data[chunk + 8 : chunk + 28] = bytes(20)
    path.write_bytes(data)
    source = open_source(str(path))
    frames = list(source)
    assert source.skipped == 2
    assert [frame.id for frame in frames] == [number(frame) for frame in frames] == [0, 1, 2, 5, 6, 7, 8, 9, 10, 11]
    assert frames[-1].last


def test_a_truncated_file_gives_what_it_has(tmp_path):
    path = tmp_path / 'a.mkv'
    write(path, 60, options={'g': '5', 'bf': '0'})
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 2 // 3])
    frames = list(open_source(str(path)))
    assert 10 < len(frames) < 60 and frames[-1].last


def test_a_change_of_size_is_an_error_that_names_frame_and_sizes(tmp_path):
    for name, size in (('one', (96, 64)), ('two', (128, 96))):
        write(tmp_path / name, 4, size, format='h264')
    (tmp_path / 'both.h264').write_bytes((tmp_path / 'one').read_bytes() + (tmp_path / 'two').read_bytes())
    frames = iter(open_source(str(tmp_path / 'both.h264')))
    with pytest.raises(VideoError, match='both.h264: changes size at frame 4 from 96x64 to 128x96'):
        list(frames)


def sound(path):
    with av.open(str(path), 'w') as container:
        stream = container.add_stream('pcm_s16le', rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format='s16', layout='mono')
        frame.sample_rate, frame.pts = 8000, 0
        container.mux(stream.encode(frame))
        container.mux(stream.encode())


def no_frames(path):
    with av.open(str(path), 'w') as container:
        stream = container.add_stream('mpeg4', rate=10)
        stream.width, stream.height, stream.pix_fmt = 96, 64, 'yuv420p'
        container.start_encoding()


@pytest.mark.parametrize('name, make, reason', [
    ('none.mp4', lambda path: None, 'does not exist'),
    ('folder', lambda path: path.mkdir(), 'holds no .jpg, .jpeg, .png file, and is no rosbag2'),
    ('empty.mp4', lambda path: path.touch(), 'is empty'),
    ('text.mp4', lambda path: path.write_text('To be or not to be.\n' * 99), 'not a video that FFmpeg can read'),
    ('sound.wav', sound, 'holds audio, no video'),
    ('still.avi', no_frames, 'not one frame'),
    ('tiny.mkv', lambda path: write(path, 1, (2, 2), 'ffv1', pix_fmt='yuv444p'), '2x2, too small'),
    ('dot.mkv', lambda path: write(path, 1, (1, 1), 'ffv1', pix_fmt='yuv444p'), '1x1, too small'),
    ('vast.avi', lambda path: write(path, 1, (8000, 6000), 'mjpeg', pix_fmt='yuvj420p'), '8000x6000, too large'),
    ('fifo.mp4', os.mkfifo, 'not a regular file'),
])
def test_what_is_no_video_is_refused_in_one_line(tmp_path, name, make, reason):
    make(tmp_path / name)
    with pytest.raises(VideoError, match=reason) as caught:
        open_source(str(tmp_path / name))
    assert str(tmp_path / name) in str(caught.value) and '\n' not in str(caught.value)


@pytest.mark.skipif(os.geteuid() == 0, reason='root may read everything')
def test_a_file_without_permission_is_refused(tmp_path):
    path = write(tmp_path / 'a.mp4', 1)
    os.chmod(path, 0)
    with pytest.raises(VideoError, match='a.mp4: cannot be read: Permission denied'):
        open_source(path)


def test_what_names_no_source_is_refused():
    with pytest.raises(VideoError, match='no input was given; give a video file'):
        open_source('')
    with pytest.raises(VideoError, match='gopher is not supported; give ws, wss, rtsp'):
        open_source('gopher://host/video')
