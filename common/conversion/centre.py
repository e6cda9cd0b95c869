"""The centre of an encoder's states: what all texts have in common, and what a state is better without.

States of E5 and of decoders point in nearly one direction whatever the text (two unrelated titles have a cosine of .75
to .95), and what differs between titles is a small rest. A head that starts from random weights, and features that are
made of cosines, see mostly the common part. So a constant is taken off: the mean state of the public titles below. It
is fitted on no user's data and costs no privacy; it is the same for all partners, since its values are pinned and lie
in the folder whose fingerprint they compare.

Source: Mu and Viswanath 2018, "All-but-the-Top", which takes the mean off word vectors.
"""

import json
from pathlib import Path

CENTRE = "centre.json"

ENGLISH = (
    "Cheap flights to Rome",
    "Ten easy dinners for busy evenings",
    "The match ended in a draw",
    "Wireless headphones with long battery life",
    "How to repair a washing machine",
    "Shares fall after the report",
    "A quiet village by the sea",
    "New album out on Friday",
    "Learn the guitar at home",
    "What the weather will be like tomorrow",
    "The best laptops for students",
    "A thriller about a missing girl (2014)",
    "Why cats sleep so much",
    "Flats to rent near the centre",
    "Save tax before the year ends",
    "Running shoes, now half price",
    "The history of the old bridge",
    "A game of strategy for two players",
    "Healthy skin in winter",
    "Election results in three cities",
    "A comedy of errors (1998)",
    "Garden furniture for small balconies",
    "Doctors warn of a new flu",
    "Photos from space",
)
CHINESE = (
    "飞往罗马的廉价航班",
    "忙碌夜晚的十道简单晚餐",
    "比赛以平局结束",
    "续航很长的无线耳机",
    "怎样修理洗衣机",
    "财报公布后股价下跌",
    "海边安静的小村庄",
    "新专辑周五发行",
    "在家学吉他",
    "明天的天气怎么样",
    "最适合学生的笔记本电脑",
    "关于失踪女孩的惊悚片（2014）",
    "猫为什么这么爱睡觉",
    "市中心附近的公寓出租",
    "年底前如何省税",
    "跑鞋现在半价",
    "老桥的历史",
    "两人玩的策略游戏",
    "冬天怎样护肤",
    "三座城市的选举结果",
    "一部错误的喜剧（1998）",
    "小阳台的花园家具",
    "医生提醒新流感",
    "来自太空的照片",
)
TEXTS = {"e5": ENGLISH + CHINESE, "smollm2": ENGLISH}


def centre_of(name: str) -> list[float]:
    """Returns the pinned centre, E numbers: the mean state of `TEXTS[name]`, rounded to hundredths."""
    table: dict[str, list[int]] = json.loads(Path(__file__).with_name("centres.json").read_bytes())
    return [hundredths / 100 for hundredths in table[name]]
