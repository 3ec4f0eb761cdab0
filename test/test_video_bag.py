# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
import cv2
import numpy as np
import pytest
from rosbags.rosbag2 import CompressionFormat, CompressionMode, StoragePlugin, Writer
from rosbags.typesys import Stores, get_types_from_msg, get_typestore

from slam3r_ros.bench.damage import decode, encode
from slam3r_ros.values import Intrinsics
from slam3r_ros.video import bag
from slam3r_ros.video.pixels import PixelError, decompress, to_rgb
from slam3r_ros.video.source import VideoError, open_source
from slam3r_ros.video.topics import base_topic, camera_info_topic, is_rectified
from slam3r_ros.video.undistort import DistortionError, Undistorter

STORE = get_typestore(Stores.ROS2_JAZZY)
TYPES = STORE.types
WIDTH, HEIGHT, COUNT = 80, 64, 4
START, PERIOD, LATE = 1_700_000_000_000_000_000, 100_000_000, 3_000_000  # nanoseconds; the bag's time is late


def image(i):
    columns = np.linspace(0, 120, WIDTH)[None, :, None]
    return (np.ones((HEIGHT, 1, 1)) * columns + np.array([10 * i, 60, 120])).astype(np.uint8)


def header(i, stamped=True):
    stamp = START + i * PERIOD if stamped else 0
    return TYPES['std_msgs/msg/Header'](
        TYPES['builtin_interfaces/msg/Time'](stamp // 10**9, stamp % 10**9), 'camera_optical_frame'
    )


def raw(i, encoding='rgb8', padding=0, stamped=True):
    codes = {'bgr8': cv2.COLOR_RGB2BGR, 'mono8': cv2.COLOR_RGB2GRAY, 'rgba8': cv2.COLOR_RGB2RGBA,
             'bgra8': cv2.COLOR_RGB2BGRA}
    pixels = cv2.cvtColor(image(i), codes[encoding]) if encoding in codes else image(i)
    rows = np.hstack([pixels.reshape(HEIGHT, -1), np.full((HEIGHT, padding), 99, np.uint8)])
    return TYPES['sensor_msgs/msg/Image'](header(i, stamped), HEIGHT, WIDTH, encoding, 0, rows.shape[1], rows.ravel())


def compressed(i, suffix='.png'):
    data = cv2.imencode(suffix, image(i)[..., ::-1])[1].ravel()
    return TYPES['sensor_msgs/msg/CompressedImage'](header(i), suffix[1:], data)


def depth(i):
    return TYPES['sensor_msgs/msg/Image'](header(i), HEIGHT, WIDTH, '16UC1', 0, 2 * WIDTH,
                                          np.zeros(2 * WIDTH * HEIGHT, np.uint8))


def info(i, distortion=(0.0, 0.0, 0.0, 0.0, 0.0), model='plumb_bob', focal=70.0, scale=1):
    k = np.array([focal, 0, 40, 0, focal, 32, 0, 0, 1], float)
    p = np.array([65.0, 0, 39, 0, 0, 65, 31, 0, 0, 0, 1, 0])
    roi = TYPES['sensor_msgs/msg/RegionOfInterest'](0, 0, 0, 0, False)
    return TYPES['sensor_msgs/msg/CameraInfo'](header(i), scale * HEIGHT, scale * WIDTH, model, np.array(distortion), k,
                                               np.eye(3).ravel(), p, 0, 0, roi)


def video_store(kind):
    store = get_typestore(Stores.ROS2_JAZZY)
    store.register(get_types_from_msg(bag._DEFINITIONS[kind], kind))
    return store


def video(kind, packets, encoding, stamped=True):
    """Return what makes the i-th message of a video."""
    message_type = video_store(kind).types[kind]

    def make(i):
        data, head = np.frombuffer(packets[i], np.uint8), header(i, stamped)
        if kind == bag.FOXGLOVE:
            return message_type(head.stamp, head.frame_id, data, encoding)
        return message_type(head, 96, 64, encoding, i, int(i == 0), False, data)

    return make


def record(path, topics, storage=StoragePlugin.MCAP, count=COUNT, compression=None):
    """Write a bag of {topic: function that makes the i-th message}."""
    writer = Writer(path, version=9, storage_plugin=storage)
    if compression is not None:
        writer.set_compression(compression, CompressionFormat.ZSTD)
    with writer:
        for topic, make in topics.items():
            kind = make(0).__msgtype__
            store = video_store(kind) if kind in bag._DEFINITIONS else STORE
            connection = writer.add_connection(topic, kind, typestore=store)
            for i in range(count):
                writer.write(connection, START + i * PERIOD + LATE, store.serialize_cdr(make(i), kind))
    return str(path)


@pytest.mark.parametrize('storage', StoragePlugin)
@pytest.mark.parametrize('make', [
    lambda i: raw(i), lambda i: raw(i, 'bgr8'), lambda i: raw(i, 'rgba8'), lambda i: raw(i, 'bgra8', 8),
    lambda i: raw(i, padding=16), compressed,
], ids=['rgb8', 'bgr8', 'rgba8', 'bgra8-padded', 'rgb8-padded', 'png'])
def test_images_of_every_kind_come_as_rgb(tmp_path, make, storage):
    source = open_source(record(tmp_path / 'bag', {'/camera/image_raw': make}, storage))
    frames = list(source)
    source.close()
    np.testing.assert_array_equal([frame.image for frame in frames], [image(i) for i in range(COUNT)])
    assert [frame.stamp for frame in frames] == [START + i * PERIOD for i in range(COUNT)]
    assert [frame.id for frame in frames] == list(range(COUNT))
    assert [frame.last for frame in frames] == [False, False, False, True]
    assert source.frames == COUNT and source.fps == pytest.approx(10) and source.skipped == 0
    assert frames[0].intrinsics is None


@pytest.mark.parametrize('mode', [CompressionMode.FILE, CompressionMode.MESSAGE,
                                  CompressionMode.STORAGE])  # fmt: skip
@pytest.mark.parametrize('storage', StoragePlugin)
def test_compressed_bags(tmp_path, storage, mode):
    if (storage, mode) == (StoragePlugin.SQLITE3, CompressionMode.STORAGE):
        pytest.skip('SQLite has no compression of its own')
    path = record(tmp_path / 'bag', {'/image': raw}, storage, compression=mode)
    np.testing.assert_array_equal([frame.image for frame in open_source(path)], [image(i) for i in range(COUNT)])


@pytest.mark.parametrize('kind, encoding', [(bag.FFMPEG, 'h264;yuv420p;bgr8'), (bag.FOXGLOVE, 'h264')])
@pytest.mark.parametrize('stamped', [True, False])
def test_video_in_messages(tmp_path, kind, encoding, stamped):
    packets = encode({'bf': '0'}, 12)
    topics = {'/a/image_raw/ffmpeg': video(kind, packets, encoding, stamped), '/a/camera_info': info}
    source = open_source(record(tmp_path / 'bag', topics, count=12))
    frames = list(source)
    np.testing.assert_array_equal([frame.image for frame in frames], decode(packets))
    assert [frame.stamp for frame in frames] == [START + i * PERIOD + (0 if stamped else LATE) for i in range(12)]
    assert source.skipped == 0 and frames[-1].last
    assert frames[0].intrinsics == Intrinsics(70, 70, 40, 32).scaled(96 / WIDTH, 64 / HEIGHT)


@pytest.mark.parametrize('kind', bag._DEFINITIONS)
def test_a_damaged_message_of_video_costs_what_needs_it(tmp_path, kind):
    packets = encode({'bf': '0'}, 12, gop=6)
    clean = decode(packets)
    packets[3] = packets[3][: len(packets[3]) // 2]
    source = open_source(record(tmp_path / 'bag', {'/image': video(kind, packets, 'h264')}, count=12))
    frames = list(source)
    assert [frame.id for frame in frames] == [0, 1, 2, *range(6, 12)] and source.skipped == 3
    np.testing.assert_array_equal([frame.image for frame in frames], [clean[frame.id] for frame in frames])
    assert [frame.stamp for frame in frames] == [START + frame.id * PERIOD for frame in frames]


def test_another_codec_in_the_midst_of_a_topic(tmp_path):
    packets = {
        'h264': encode({'bf': '0'}, 6),
        'h265': encode({'x265-params': 'log-level=none:bframes=0'}, 6, codec='libx265'),
    }
    makers = [video(bag.FOXGLOVE, packets[codec], codec) for codec in ('h264', 'h265')]

    def make(i):
        message = makers[i // 6](i % 6)
        return type(message)(header(i).stamp, message.frame_id, message.data, message.format)

    source = open_source(record(tmp_path / 'bag', {'/image': make}, count=12))
    assert [frame.id for frame in source] == list(range(12)) and source.skipped == 0


def test_an_unknown_video_codec_is_refused(tmp_path):
    path = record(tmp_path / 'bag', {'/video': video(bag.FOXGLOVE, encode({}, 4), 'wmv9')})
    with pytest.raises(VideoError, match="no image that can be decoded ./video: codec 'wmv9' is not supported"):
        open_source(path)


def test_grey_and_jpeg(tmp_path):
    frames = list(open_source(record(tmp_path / 'grey', {'/image': lambda i: raw(i, 'mono8')})))
    grey = cv2.cvtColor(image(1), cv2.COLOR_RGB2GRAY)
    np.testing.assert_array_equal(frames[1].image, np.repeat(grey[..., None], 3, 2))
    frames = list(open_source(record(tmp_path / 'jpeg', {'/image': lambda i: compressed(i, '.jpg')})))
    assert np.abs(frames[1].image.astype(int) - image(1)).mean() < 3


def test_one_storage_file_is_enough(tmp_path):
    record(tmp_path / 'bag', {'/image': raw})
    assert len(list(open_source(str(tmp_path / 'bag' / 'bag.mcap')))) == COUNT


def test_bag_time_stands_in_for_zero_stamps(tmp_path):
    frames = list(open_source(record(tmp_path / 'bag', {'/image': lambda i: raw(i, stamped=False)})))
    assert [frame.stamp for frame in frames] == [START + i * PERIOD + LATE for i in range(COUNT)]


def test_raw_is_preferred_to_compressed_and_a_topic_can_be_chosen(tmp_path):
    topics = {'/a/image_raw/compressed': compressed, '/a/image_raw': raw, '/depth': depth, '/depth/camera_info': info,
              '/a/camera_info': info}
    path = record(tmp_path / 'bag', topics)
    assert open_source(path).name == f'{path} /a/image_raw'
    source = open_source(path, topic='/a/image_raw/compressed')
    assert source.name == f'{path} /a/image_raw/compressed'
    assert next(iter(source)).intrinsics == Intrinsics(70, 70, 40, 32)


def test_the_camera_info_beside_gives_the_intrinsics_of_the_images_size(tmp_path):
    topics = {'/a/image_raw': raw, '/a/camera_info': lambda i: info(i, scale=2), '/b/camera_info': info}
    camera = next(iter(open_source(record(tmp_path / 'bag', topics)))).intrinsics
    assert camera == Intrinsics(70, 70, 40, 32).scaled(0.5, 0.5)
    topics = {'/a/image_raw': raw, '/a/camera_info': lambda i: info(i, focal=0.0)}  # uncalibrated
    assert next(iter(open_source(record(tmp_path / 'none', topics)))).intrinsics is None


def test_distortion_is_removed(tmp_path):
    lens = (-0.3, 0.1, 0.001, -0.002, 0.0)
    topics = {'/a/image_raw': raw, '/a/camera_info': lambda i: info(i, lens)}
    frame = next(iter(open_source(record(tmp_path / 'bag', topics))))
    K = np.array([[70.0, 0, 40], [0, 70, 32], [0, 0, 1]])
    # A pixel of the result is what the distorted picture shows where the lens draws its ray.
    for u, v in ((10, 10), (70, 50), (40, 5)):
        x, y = (u - frame.intrinsics.cx) / frame.intrinsics.fx, (v - frame.intrinsics.cy) / frame.intrinsics.fy
        (column, _), = cv2.projectPoints(np.array([[x, y, 1.0]]), np.zeros(3), np.zeros(3), K, np.array(lens))[0][0]
        assert frame.image[v, u, 1] == pytest.approx(60 + 120 * column / (WIDTH - 1), abs=1.5)


def test_a_rectified_topic_follows_the_projection_matrix(tmp_path):
    topics = {'/a/image_rect': raw, '/a/camera_info': lambda i: info(i, (-0.3, 0.1, 0, 0, 0))}
    frame = next(iter(open_source(record(tmp_path / 'bag', topics))))
    assert frame.intrinsics == Intrinsics(65, 65, 39, 31)
    np.testing.assert_array_equal(frame.image, image(0))


@pytest.mark.parametrize('transport', ['', '/compressed', '/ffmpeg', '/foxglove'])
def test_what_image_transport_appends_does_not_hide_the_camera(transport):
    assert base_topic(f'/a/image_rect{transport}') == '/a/image_rect'
    assert camera_info_topic(f'/a/image_raw{transport}') == '/a/camera_info'
    assert camera_info_topic(f'image_raw{transport}') == 'camera_info'
    assert is_rectified(f'/a/image_rect_color{transport}') and not is_rectified(f'/image_rect/image_raw{transport}')


def test_a_broken_picture_is_skipped_and_counted(tmp_path):
    def make(i):
        message = compressed(i)
        return type(message)(message.header, message.format, message.data[:20]) if i == 2 else message

    source = open_source(record(tmp_path / 'bag', {'/image/compressed': make}))
    assert [frame.id for frame in source] == [0, 1, 3]
    assert source.skipped == 1


@pytest.mark.parametrize('topics, reason', [
    ({'/a/camera_info': info},
     'no Image, CompressedImage or video topic; its topics: /a/camera_info .sensor_msgs/msg/CameraInfo.'),
    ({'/depth': depth}, "no image that can be decoded .*/depth: image encoding '16UC1' is not supported"),
    ({'/a/image_raw': raw, '/a/camera_info': lambda i: info(i, (0.1, 0.1), 'thin_prism')}, "model 'thin_prism'"),
])
def test_bags_without_usable_images_are_refused(tmp_path, topics, reason):
    path = record(tmp_path / 'bag', topics)
    with pytest.raises(VideoError, match=reason) as caught:
        open_source(path)
    assert path in str(caught.value) and '\n' not in str(caught.value)


def test_a_topic_that_is_not_there_is_refused(tmp_path):
    path = record(tmp_path / 'bag', {'/image': raw})
    with pytest.raises(VideoError, match='no images on topic /other; its topics: /image'):
        open_source(path, topic='/other')


def test_broken_bags_are_refused(tmp_path):
    record(tmp_path / 'bag', {'/image': raw})
    data = (tmp_path / 'bag' / 'bag.mcap').read_bytes()
    for name, content in (('half.mcap', data[: len(data) // 2]), ('text.db3', b'To be or not to be'), ('a.mcap', b'x')):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(VideoError, match=f'{name}: is not a rosbag2 that can be read') as caught:
            open_source(str(tmp_path / name))
        assert '\n' not in str(caught.value)
    (tmp_path / 'bag' / 'bag.mcap').unlink()
    with pytest.raises(VideoError, match='not a rosbag2 that can be read .*missing'):
        open_source(str(tmp_path / 'bag'))


def test_too_little_data_is_refused():
    with pytest.raises(PixelError, match='image of 4x4 rgb8 has 47 bytes in rows of 12, needs 48'):
        to_rgb(bytes(47), 'rgb8', 4, 4, 12)
    with pytest.raises(PixelError, match='rows of 11, needs 48 in rows of 12'):
        to_rgb(bytes(48), 'rgb8', 4, 4, 11)
    with pytest.raises(PixelError, match='neither JPEG nor PNG'):
        decompress(b'')


def test_a_fisheye_lens_is_undone():
    undistorter = Undistorter(Intrinsics(70, 70, 40, 32), (0.05, 0.01, 0, 0), WIDTH, HEIGHT, 'equidistant')
    assert undistorter(image(0)).shape == image(0).shape
    assert undistorter.intrinsics.fx > 0
    with pytest.raises(DistortionError, match='with 3 coefficients'):
        Undistorter(Intrinsics(70, 70, 40, 32), (0.05, 0.01, 0.1), WIDTH, HEIGHT)
