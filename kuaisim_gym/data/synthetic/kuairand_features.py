"""Features of the synthetic KuaiRand-Pure: the published fields with the published marginals.

Shares are the numbers of users or videos with each value in KuaiRand-Pure's feature files, ``""``
standing for a missing one. Fields are independent of each other and of preferences, except where
a comment says otherwise.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from kuaisim_gym.data.dataset import Features
from kuaisim_gym.data.synthetic.causal import Causes, Vector
from kuaisim_gym.data.synthetic.features import Strings, by_rank, category_lists, coded, drawn

# Videos with each tag, the most frequent first; the k-th tag stands for category k.
TAG_COUNTS = {
    "39": 1446, "3": 732, "20": 675, "12": 606, "62": 489, "43": 428, "68": 428, "9": 419,
    "6": 400, "7": 383, "2": 296, "1": 254, "15": 245, "17": 220, "67": 206, "11": 181,
    "4": 177, "8": 177, "28": 145, "60": 144, "25": 136, "5": 102, "18": 102, "19": 99,
    "10": 89, "26": 82, "42": 75, "27": 58, "38": 54, "36": 46, "14": 43, "24": 41,
    "21": 41, "34": 40, "22": 37, "29": 35, "13": 33, "35": 33, "65": 33, "30": 31,
    "16": 16, "37": 11, "54": 10, "40": 5, "56": 4, "23": 3,
}  # fmt: skip
_TAGS_A_VIDEO = {"0": 96, "1": 5696, "2": 1759, "3": 32}

_UPLOAD_TYPES = {
    "LongImport": 2925, "Web": 2416, "ShortImport": 917, "Kmovie": 879, "LongPicture": 143,
    "UNKNOWN": 80, "PictureSet": 73, "LongCamera": 64, "ShortCamera": 43, "ShareFromOtherApp": 29,
    "FollowShoot": 10, "AiCutVideo": 2, "PhotoCopy": 1, "LipsSync": 1,
}  # fmt: skip
_PICTURES = ("LongPicture", "PictureSet")
_MUSIC_TYPES = {"9.0": 6665, "4.0": 657, "": 203, "8.0": 41, "7.0": 14, "11.0": 3}
_DURATION_LEVELS = np.array([0.0, 0.01, 0.05, 0.10, 0.25, 0.50, 0.75, 0.90, 0.95, 0.99, 1.0])
_DURATIONS = 1000.0 * np.array(  # milliseconds
    [5.0, 7.44, 10.7, 14.6, 31.9, 81.2, 148.2, 237.8, 303.5, 510.0, 1177.7]
)

# The first five are degrees of activity, highest first; the others tell when a user came.
_DEGREES = {
    "full_active": 17959, "high_active": 6158, "middle_active": 2133, "low_active": 300,
    "single_low_active": 68,
}  # fmt: skip
_NEWCOMERS = {"2_14_day_new": 635, "30day_retention": 15, "day_new": 11, "UNKNOWN": 6}
# Share of live streamers by degree; about a quarter of the newcomers are.
_LIVE_STREAMERS = {"full_active": 0.272, "high_active": 0.140, "middle_active": 0.095,
                   "low_active": 0.087, "single_low_active": 0.118}  # fmt: skip
_LIVE_STREAMING_NEWCOMERS = 0.26
_USER_FIELDS = {
    "is_lowactive_period": {"0": 27285},
    "is_video_author": {"1": 22276, "0": 5009},
    "follow_user_num_range": {
        "500+": 5950, "(10,50]": 4904, "(250,500]": 4377, "(50,100]": 4004, "(150,250]": 3490,
        "(100,150]": 2633, "(0,10]": 1739, "0": 188,
    },
    "fans_user_num_range": {
        "[10,100)": 10467, "[100,1k)": 8664, "[1,10)": 5326, "[1k,5k)": 1460, "0": 1157,
        "[5k,1w)": 112, "[1w,10w)": 85, "[10w,100w)": 12, "[100w,1000w)": 2,
    },
    "friend_user_num_range": {
        "[5,30)": 7595, "[1,5)": 5270, "0": 3375, "250+": 3172, "[30,60)": 2852, "[60,120)": 2749,
        "[120,250)": 2272,
    },
    "register_days_range": {
        "730+": 20063, "366-730": 3475, "181-365": 1778, "91-180": 1048, "61-90": 394,
        "31-60": 381, "15-30": 145, "8-14": 1,
    },
    "onehot_feat0": {"1": 15364, "0": 11921},
    "onehot_feat1": {"4": 7221, "1": 6006, "2": 5096, "3": 3432, "5": 2759, "6": 1923, "0": 848},
    "onehot_feat4": {
        "1.0": 10083, "2.0": 5061, "3.0": 3184, "0.0": 3039, "4.0": 2021, "5.0": 1062, "": 874,
        "6.0": 862, "8.0": 401, "7.0": 379, "9.0": 270, "11.0": 16, "12.0": 14, "10.0": 9,
        "13.0": 8, "14.0": 2,
    },
    "onehot_feat6": {"0": 14731, "1": 12395, "2": 159},
    "onehot_feat9": {"3": 6233, "6": 6087, "1": 6082, "5": 4019, "4": 3177, "2": 1427, "0": 260},
    "onehot_feat10": {"3": 10904, "2": 7973, "0": 4308, "4": 4064, "1": 36},
    "onehot_feat11": {"0": 20333, "2": 6685, "1": 264, "3": 2, "4": 1},
}  # fmt: skip
# Users who have each of these; they are missing together, for some users.
_FLAGS = {
    "onehot_feat12": 19234, "onehot_feat13": 1812, "onehot_feat14": 3165, "onehot_feat15": 603,
    "onehot_feat16": 1073, "onehot_feat17": 385,
}  # fmt: skip
_USERS, _WITHOUT_FLAGS = 27285, 714


def user_features(causes: Causes, rng: np.random.Generator) -> Features:
    """Features of the users; the active degree follows activity, live streaming follows both.

    Activity goes with a user's general inclination to respond, and so does the degree.
    """
    n = len(causes.activity)
    degree = _active_degree(causes.activity, rng)
    shares = [_LIVE_STREAMERS.get(name, _LIVE_STREAMING_NEWCOMERS) for name in degree.tolist()]
    live = rng.random(n) < np.array(shares)
    columns = {"user_active_degree": degree, "is_live_streamer": np.where(live, "1", "-124")}
    columns |= {field: drawn(shares, n, rng) for field, shares in _USER_FIELDS.items()}
    missing = rng.random(n) < _WITHOUT_FLAGS / _USERS
    for field, count in _FLAGS.items():
        has = rng.random(n) < count / (_USERS - _WITHOUT_FLAGS)
        columns[field] = np.where(missing, "", np.where(has, "1.0", "0.0"))
    return coded(columns)


def _active_degree(activity: Vector, rng: np.random.Generator) -> Strings:
    n = len(activity)
    degree = by_rank(activity + 0.5 * rng.standard_normal(n), _DEGREES)
    share = sum(_NEWCOMERS.values()) / _USERS
    return np.where(rng.random(n) < share, drawn(_NEWCOMERS, n, rng), degree)


def item_features(causes: Causes, rng: np.random.Generator) -> Features:
    """Features of the videos; tags tell where a video lies in the space of preferences."""
    n = len(causes.category)
    sizes = drawn(_TAGS_A_VIDEO, n, rng).astype(np.int64)
    upload = drawn(_UPLOAD_TYPES, n, rng)
    unknown = upload == "UNKNOWN"  # the uploads that are advertisements
    video = np.where(unknown & (rng.random(n) < 0.95), "AD", "NORMAL")
    video = np.where(rng.random(n) < 1 / 7583, "UNKNOWN", video)
    features = coded(
        {
            "tag": category_lists(causes, sizes, list(TAG_COUNTS)),
            "video_type": video,
            "upload_type": upload,
            "music_type": _music_type(unknown, rng),
        }
    )
    level = (rng.permutation(n) + 0.5) / n
    duration = np.rint(np.interp(level, _DURATION_LEVELS, _DURATIONS))
    pictures = np.isin(upload, _PICTURES)  # have no duration, and a few others lack it
    duration[pictures | ((upload == "ShortImport") & (rng.random(n) < 0.025))] = np.nan
    return Features(features.codes, features.values, {"video_duration": duration})


def _music_type(unknown: NDArray[np.bool_], rng: np.random.Generator) -> Strings:
    """Music types; uploads of unknown type have next to none."""
    n = len(unknown)
    shares = {name: count for name, count in _MUSIC_TYPES.items() if name}
    missing = rng.random(n) < np.where(unknown, 0.97, 0.0167)
    return np.where(missing, "", drawn(shares, n, rng))
