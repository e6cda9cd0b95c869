"""The vocabulary of generated advertisements: five domains, eight themes each, English and Chinese.

A topic is a (domain, theme) pair. Things that share a theme are close in meaning across domains and languages, and
that is what a text encoder can learn to use. Templates hold at most {thing}, {hook}, {number} and {price}.
"""

from dataclasses import dataclass

THEMES = ("food", "sport", "music", "travel", "money", "home", "games", "animals")
LANGUAGES = ("en", "zh")


@dataclass(frozen=True)
class Copy:
    """One domain in one language: what is advertised, per theme, and how."""

    things: dict[str, tuple[str, ...]]  # theme -> five noun phrases
    hooks: tuple[str, ...]
    templates: tuple[str, ...]


SHOP_EN = Copy(
    things={
        "food": ("cast-iron pans", "espresso machines", "chef's knives", "pasta makers", "spice racks"),
        "sport": ("trail running shoes", "yoga mats", "adjustable dumbbells", "cycling jerseys", "tennis rackets"),
        "music": ("acoustic guitars", "studio headphones", "vinyl turntables", "digital pianos", "concert speakers"),
        "travel": ("cabin suitcases", "travel backpacks", "packing cubes", "neck pillows", "passport wallets"),
        "money": ("coin banks", "budget planners", "fireproof safes", "receipt scanners", "cash boxes"),
        "home": ("oak bookshelves", "linen curtains", "floor lamps", "wool rugs", "storage beds"),
        "games": ("gaming keyboards", "board games", "jigsaw puzzles", "console controllers", "chess sets"),
        "animals": ("dog harnesses", "cat trees", "aquarium filters", "bird feeders", "hamster cages"),
    },
    hooks=("Lightweight", "Award-winning", "Hand-finished", "Best-selling", "Repairable", "Discounted"),
    templates=(
        "{hook} {thing} from {price}",
        "{number}% off {thing} this week",
        "{hook} {thing}, delivered free",
        "New in: {thing}, now {price}",
        "Our {number} top-rated {thing}",
        "Compare {thing} from {number} makers",
    ),
)

SHOP_ZH = Copy(
    things={
        "food": ("铸铁锅", "意式咖啡机", "主厨刀具", "家用压面机", "厨房调料架"),
        "sport": ("越野跑鞋", "瑜伽垫", "可调节哑铃", "骑行服", "网球拍"),
        "music": ("民谣吉他", "监听耳机", "黑胶唱机", "电钢琴", "音乐会音箱"),
        "travel": ("登机箱", "旅行背包", "行李收纳袋", "旅行颈枕", "护照夹"),
        "money": ("存钱罐", "家庭记账本", "防火保险箱", "票据扫描仪", "现金收纳盒"),
        "home": ("橡木书架", "亚麻窗帘", "落地灯", "羊毛地毯", "收纳床"),
        "games": ("游戏键盘", "桌游套装", "拼图玩具", "游戏手柄", "国际象棋套装"),
        "animals": ("狗狗胸背带", "猫爬架", "鱼缸过滤器", "喂鸟器", "仓鼠笼"),
    },
    hooks=("轻便", "获奖", "手工打磨", "热销", "耐用", "特惠"),
    templates=(
        "{hook}{thing},{price}起",
        "本周{thing}立减{number}%",
        "{hook}{thing},包邮到家",
        "新品上架:{thing},现价{price}",
        "{number}款高分{thing}推荐",
        "{thing}怎么选?对比{number}个品牌",
    ),
)

SOCIAL_EN = Copy(
    things={
        "food": ("sourdough baking", "home fermentation", "street food", "vegan lunches", "weekend barbecues"),
        "sport": ("five-a-side football", "morning runs", "bouldering", "open-water swimming", "table tennis"),
        "music": ("choir singing", "jazz records", "home recording", "ukulele playing", "concert nights"),
        "travel": ("slow travel", "night trains", "solo backpacking", "island hopping", "camper van trips"),
        "money": ("saving challenges", "first-time investing", "frugal living", "side incomes", "early retirement"),
        "home": ("balcony gardening", "small-flat living", "furniture restoring", "tidy wardrobes", "home repairs"),
        "games": ("chess openings", "tabletop role-playing", "retro consoles", "card game evenings", "speedrunning"),
        "animals": ("rescue dogs", "cat photos", "birdwatching", "backyard hens", "reef aquariums"),
    },
    hooks=("Fresh", "Honest", "Funny", "Friendly", "Useful", "Local"),
    templates=(
        "{hook} posts about {thing}",
        "Join {number} thousand people who talk about {thing}",
        "{hook} people near you are into {thing}",
        "{number} new stories about {thing}",
        "Your friends follow {number} pages on {thing}",
        "A new group on {thing} with {number} members",
    ),
)

SOCIAL_ZH = Copy(
    things={
        "food": ("酸面包烘焙", "家庭发酵", "街头小吃", "素食午餐", "周末烧烤"),
        "sport": ("五人制足球", "晨跑打卡", "抱石攀岩", "公开水域游泳", "乒乓球"),
        "music": ("合唱团", "爵士唱片", "家庭录音", "尤克里里弹唱", "演唱会之夜"),
        "travel": ("慢旅行", "夜行列车", "独自背包游", "海岛跳岛游", "房车旅行"),
        "money": ("存钱挑战", "新手理财", "节俭生活", "副业收入", "提前退休"),
        "home": ("阳台种菜", "小户型生活", "旧家具翻新", "衣橱收纳", "家居维修"),
        "games": ("国际象棋开局", "桌面角色扮演", "怀旧游戏机", "卡牌之夜", "游戏速通"),
        "animals": ("领养狗狗", "猫咪照片", "观鸟", "后院养鸡", "海水缸造景"),
    },
    hooks=("新鲜", "真实", "有趣", "友好", "实用", "同城"),
    templates=(
        "{hook}的{thing}动态",
        "和{number}万人一起聊{thing}",
        "身边{hook}的人都在玩{thing}",
        "{number}个关于{thing}的新故事",
        "好友关注了{number}个{thing}主页",
        "{thing}新圈子,已有{number}人加入",
    ),
)

NEWS_EN = Copy(
    things={
        "food": (
            "rising wheat prices",
            "school meals",
            "food labelling rules",
            "restaurant kitchens",
            "olive harvests",
        ),
        "sport": (
            "the marathon season",
            "football transfers",
            "women's rugby",
            "Olympic qualifying",
            "the cycling tour",
        ),
        "music": ("streaming royalties", "festival line-ups", "the opera house", "concert tickets", "the album charts"),
        "travel": (
            "airport queues",
            "night train routes",
            "tourist visa rules",
            "city tourism limits",
            "airline fares",
        ),
        "money": ("interest rates", "household savings", "pension reform", "the stock market", "currency swings"),
        "home": ("house prices", "rent controls", "new building codes", "heat pump grants", "home insulation"),
        "games": (
            "the console market",
            "e-sports leagues",
            "game studio mergers",
            "video game sales",
            "the chess title",
        ),
        "animals": ("wolf protection", "bee decline", "zoo breeding plans", "whale migration", "pet travel rules"),
    },
    hooks=("Analysis", "Explained", "Opinion", "In depth", "Interview", "Podcast"),
    templates=(
        "{hook}: {thing}",
        "{number} charts on {thing}",
        "{hook}: the debate over {thing}",
        "{number} questions about {thing}, answered",
        "{hook}: what comes next for {thing}",
        "The last {number} days in {thing}",
    ),
)

NEWS_ZH = Copy(
    things={
        "food": ("小麦价格上涨", "学校午餐", "食品标签新规", "餐馆后厨", "橄榄收成"),
        "sport": ("马拉松赛季", "足球转会", "女子橄榄球", "奥运资格赛", "环法自行车赛"),
        "music": ("流媒体版税", "音乐节阵容", "歌剧院", "演唱会门票", "专辑排行榜"),
        "travel": ("机场排队", "夜行列车线路", "旅游签证新规", "城市限游政策", "机票价格"),
        "money": ("利率调整", "家庭储蓄", "养老金改革", "股市行情", "汇率波动"),
        "home": ("房价走势", "租金管制", "建筑新规", "热泵补贴", "住宅保温"),
        "games": ("游戏机市场", "电竞联赛", "游戏公司并购", "电子游戏销量", "国际象棋冠军赛"),
        "animals": ("野狼保护", "蜜蜂减少", "动物园繁育计划", "鲸鱼洄游", "宠物出行新规"),
    },
    hooks=("分析", "解读", "评论", "深度", "专访", "播客"),
    templates=(
        "{hook}:{thing}",
        "{number}张图看懂{thing}",
        "{hook}:{thing}引发的争论",
        "关于{thing}的{number}个问答",
        "{hook}:{thing}下一步怎么走",
        "{thing}:过去{number}天发生了什么",
    ),
)

VIDEO_EN = Copy(
    things={
        "food": (
            "hand-pulled noodles",
            "a ramen master's kitchen",
            "bread baking",
            "night market snacks",
            "knife skills",
        ),
        "sport": (
            "marathon training",
            "the greatest goals",
            "a free solo climb",
            "beginner yoga",
            "table tennis duels",
        ),
        "music": ("unplugged sessions", "piano lessons", "a drum masterclass", "festival highlights", "nineties songs"),
        "travel": (
            "Alpine rail journeys",
            "a weekend in Kyoto",
            "desert crossings",
            "hidden islands",
            "walks in Lisbon",
        ),
        "money": ("beginner investing", "how banks work", "paying off debt", "market crashes", "living on one income"),
        "home": ("tiny house tours", "a kitchen makeover", "woodworking", "decluttering a flat", "furniture painting"),
        "games": (
            "speedrun records",
            "chess endgames",
            "indie game reviews",
            "a strategy playthrough",
            "board game rules",
        ),
        "animals": (
            "snow leopards",
            "puppy training",
            "life on the reef",
            "birds of the wetlands",
            "a year with foxes",
        ),
    },
    hooks=("Tonight", "Free to stream", "Editors' pick", "Documentary", "Trending", "Just released"),
    templates=(
        "{hook}: {thing}",
        "Watch {thing} in {number} minutes",
        "{hook}: {thing}, the full series",
        "{number} episodes on {thing}",
        "{hook}: {thing} in 4K",
        "{number} thousand viewers liked this film on {thing}",
    ),
)

VIDEO_ZH = Copy(
    things={
        "food": ("手工拉面", "拉面师傅的厨房", "在家烤面包", "夜市小吃", "刀工教学"),
        "sport": ("马拉松训练", "经典进球", "徒手攀岩", "瑜伽入门", "乒乓球对决"),
        "music": ("不插电现场", "钢琴课", "架子鼓大师课", "音乐节精选", "九十年代金曲"),
        "travel": ("阿尔卑斯火车之旅", "京都周末游", "穿越沙漠", "秘境海岛", "漫步里斯本"),
        "money": ("理财入门", "银行如何运作", "还清债务", "股灾启示录", "一份收入怎么过"),
        "home": ("迷你小屋参观", "厨房改造", "木工入门", "公寓断舍离", "家具上漆"),
        "games": ("速通纪录", "国际象棋残局", "独立游戏评测", "策略游戏实况", "桌游规则讲解"),
        "animals": ("雪豹", "幼犬训练", "珊瑚礁里的生命", "湿地飞鸟", "与狐狸共度一年"),
    },
    hooks=("今晚播出", "免费观看", "编辑推荐", "纪录片", "热门", "刚刚上线"),
    templates=(
        "{hook}:{thing}",
        "{number}分钟看完{thing}",
        "{hook}:{thing}全集",
        "{thing},共{number}集",
        "{hook}:4K画质看{thing}",
        "{number}万观众点赞的影片:{thing}",
    ),
)

APPS_EN = Copy(
    things={
        "food": ("recipe planning", "calorie counting", "grocery lists", "restaurant booking", "meal sharing"),
        "sport": ("interval running", "home workouts", "gym logging", "live match scores", "swim tracking"),
        "music": ("guitar tuning", "ear training", "playlist mixing", "beat making", "sheet music reading"),
        "travel": ("flight tracking", "offline city maps", "trip planning", "train tickets", "travel phrasebooks"),
        "money": ("budget tracking", "bill splitting", "tax returns", "share trading", "pocket money"),
        "home": ("room planning", "chore sharing", "smart lighting", "energy monitoring", "plant watering"),
        "games": ("word puzzles", "sudoku", "online chess", "card battles", "city building"),
        "animals": ("dog walking", "vet appointments", "birdsong recognition", "puppy training", "aquarium care"),
    },
    hooks=("Simple", "Private", "Offline", "Award-winning", "Ad-free", "Clever"),
    templates=(
        "{hook} {thing} in one app",
        "{thing} made easy: free for {number} days",
        "{hook} {thing} on your phone",
        "The app for {thing}, loved by {number} thousand people",
        "{hook} {thing}, updated today",
        "Learn {thing} with {number} short guides",
    ),
)

APPS_ZH = Copy(
    things={
        "food": ("菜谱规划", "卡路里记录", "买菜清单", "餐厅预订", "拼饭分享"),
        "sport": ("间歇跑步", "居家健身", "健身房打卡", "实时比分", "游泳记录"),
        "music": ("吉他调音", "听力练耳", "歌单混音", "节拍制作", "乐谱阅读"),
        "travel": ("航班追踪", "离线城市地图", "行程规划", "火车票预订", "旅行常用语"),
        "money": ("预算记账", "账单分摊", "个税申报", "股票交易", "零花钱管理"),
        "home": ("房间布置", "家务分工", "智能灯光", "用电监测", "浇花提醒"),
        "games": ("猜词游戏", "数独", "在线象棋", "卡牌对战", "城市建造"),
        "animals": ("遛狗助手", "宠物医生预约", "鸟鸣识别", "幼犬训练", "鱼缸养护"),
    },
    hooks=("简洁", "保护隐私", "离线可用", "获奖", "无广告", "聪明"),
    templates=(
        "{hook}的{thing},一个应用搞定",
        "轻松{thing},免费试用{number}天",
        "{hook}的{thing},装进手机",
        "{number}万人都在用的{thing}应用",
        "{hook}的{thing},今日更新",
        "{number}篇短教程学会{thing}",
    ),
)

COPY: dict[str, dict[str, Copy]] = {
    "e-commerce": {"en": SHOP_EN, "zh": SHOP_ZH},
    "social": {"en": SOCIAL_EN, "zh": SOCIAL_ZH},
    "news": {"en": NEWS_EN, "zh": NEWS_ZH},
    "video": {"en": VIDEO_EN, "zh": VIDEO_ZH},
    "apps": {"en": APPS_EN, "zh": APPS_ZH},
}
