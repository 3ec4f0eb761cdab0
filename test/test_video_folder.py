# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
import cv2
import numpy as np
import pytest

from slam3r_ros.video.source import VideoError, open_source

SECOND = 10**9


def image(i):
    return np.full((64, 96, 3), 10 * i, np.uint8) + np.arange(96, dtype=np.uint8)[None, :, None]


def write(folder, names):
    for i, name in enumerate(names):
        (folder / name).write_bytes(cv2.imencode(folder.joinpath(name).suffix, image(i)[..., ::-1])[1])
    return str(folder)


def test_images_come_in_the_natural_order_of_their_names(tmp_path):
    names = ['frame8.png', 'frame9.png', 'frame10.PNG', 'frame100.png']
    (tmp_path / 'notes.txt').write_text('no image')
    source = open_source(write(tmp_path, names), 5 * SECOND, fps=10)
    frames = list(source)
    np.testing.assert_array_equal([frame.image for frame in frames], [image(i) for i in range(4)])
    assert [frame.stamp for frame in frames] == [5 * SECOND + i * SECOND // 10 for i in range(4)]
    assert [frame.last for frame in frames] == [False, False, False, True]
    assert (source.frames, source.fps, source.skipped) == (4, 10, 0)


@pytest.mark.parametrize('names, stamps', [
    (['1341846313.592026.png', '1341846313.625978.png'], [1341846313592026000, 1341846313625978000]),
    (['1403636579763555584.jpg', '1403636579813555456.jpg'], [1403636579763555584, 1403636579813555456]),
    (['9.5.png', '10.25.png'], [9_500_000_000, 10_250_000_000]),
])  # fmt: skip
def test_names_that_are_times_give_the_stamps(tmp_path, names, stamps):
    source = open_source(write(tmp_path, names), 5 * SECOND)
    assert [frame.stamp for frame in source] == stamps
    assert source.fps == pytest.approx(SECOND / (stamps[1] - stamps[0]))


def test_a_broken_image_is_skipped_and_counted(tmp_path):
    path = write(tmp_path, ['0.jpg', '1.jpg', '2.jpg', '3.png'])
    data = (tmp_path / '1.jpg').read_bytes()
    (tmp_path / '1.jpg').write_bytes(data[: len(data) // 2])  # libjpeg would fill the rest with grey
    data = bytearray((tmp_path / '3.png').read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / '3.png').write_bytes(data)
    source = open_source(path)
    assert [frame.id for frame in source] == [0, 2] and source.skipped == 2


def test_a_vast_image_is_not_decoded(tmp_path):
    write(tmp_path, ['0.png', '1.png'])
    data = bytearray((tmp_path / '1.png').read_bytes())
    data[16:24] = (60_000).to_bytes(4) * 2
    (tmp_path / '1.png').write_bytes(data)
    source = open_source(str(tmp_path))
    assert [frame.id for frame in source] == [0] and source.skipped == 1


def test_a_change_of_size_is_refused(tmp_path):
    write(tmp_path, ['0.png'])
    (tmp_path / '1.png').write_bytes(cv2.imencode('.png', np.zeros((96, 128, 3), np.uint8))[1])
    with pytest.raises(VideoError, match='changes size at frame 1 from 96x64 to 128x96'):
        list(open_source(str(tmp_path)))


def test_a_folder_without_images_is_refused(tmp_path):
    with pytest.raises(VideoError, match='holds no .jpg, .jpeg, .png file, and is no rosbag2'):
        open_source(str(tmp_path))
