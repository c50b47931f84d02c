"""The labels and messages of the tutorial in its second language, and the font that they need."""

from collections.abc import Callable
from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib import font_manager

CHINESE = {
    # drawings
    "image x\n{} numbers": "图像 x\n{} 个数",
    "reconstruction x̂\n{} numbers": "重构 x̂\n{} 个数",
    "code z: the bottleneck": "编码 z：瓶颈",
    "encoder  z = e(x)": "编码器  z = e(x)",
    "decoder  x̂ = d(z)": "解码器  x̂ = d(z)",
    "the squared error ‖x − x̂‖² compares both ends": "平方误差 ‖x − x̂‖² 比较首尾两端",
    "selection: keep some of the old features": "特征选择：保留一部分原有特征",
    "extraction: compute new ones from the old": "特征提取：由原有特征计算新特征",
    "x: two numbers": "x：两个数",
    "encoded z = e(x): one number": "编码 z = e(x)：一个数",
    "decoded d(e(x)); hollow: x": "解码 d(e(x))；空心圆：x",
    "lossless: d(e(x)) = x": "无损：d(e(x)) = x",
    "lossy: d(e(x)) ≠ x": "有损：d(e(x)) ≠ x",
    "autoencoder": "自编码器",
    "variational\nautoencoder": "变分自编码器",
    "encoder": "编码器",
    "decoder": "解码器",
    "loss:": "损失：",
    "z: a point": "z：一个点",
    "q(z | x): a distribution": "q(z | x)：一个分布",
    "z: drawn from it": "z：从中抽取",
    "z is drawn inside the network": "在网络内部抽取 z",
    "z is computed; only the noise is drawn": "z 由计算得到，只抽取噪声",
    "decoder, loss": "解码器、损失",
    "outside: one\nmore input": "在外面：\n另一个输入",
    "a draw has\nno derivative": "抽样\n没有导数",
    "black: forwards; red: the gradient, backwards; dashed: what backpropagation has to pass": (
        "黑色：前向计算；红色：梯度反向传播；虚线框：反向传播要经过的部分"
    ),
    # figures
    "Ten test digits": "十个测试数字",
    "kept of the 784 numbers": "784 个数中保留的个数",
    "all": "全部",
    "dimensions D of the code": "编码的维数 D",
    "squared error of an image": "每幅图像的平方误差",
    "PCA's error (dots) and the discarded eigenvalues (line)": "PCA 的误差（点）与舍弃的特征值之和（线）",
    "optimiser step": "优化步数",
    "largest principal angle (degrees)": "最大主夹角（度）",
    "The plane turns into that of PCA": "平面转向 PCA 的平面",
    "1st direction": "第一方向",
    "2nd direction": "第二方向",
    "The directions that span it": "张成平面的两个方向",
    "change of a pixel": "像素的变化",
    "Twelve training digits and their codes on a line: no error at all": "十二个训练数字及其在直线上的编码：毫无误差",
    "What lies between them, and beyond the last": "它们之间以及最后一个之后的点",
    "Codes of 500 test digits; the dashed disc holds 95% of N(0, I)": "500 个测试数字的编码；虚线圆含 N(0, I) 的 95%",
    "What the decoder makes of z; holes are red": "解码器由 z 画出的图像；红色为空洞",
    "test digits": "测试数字",
    "reconstructed": "重构",
    "z ~ fitted Gaussian": "z ~ 拟合的高斯分布",
    "A deep autoencoder with ten numbers": "用十个数的深度自编码器",
    "reparameterised": "重参数化",
    "score function": "得分函数",
    "exact gradient": "精确梯度",
    "estimate from one draw, D = 1": "一次抽样的估计，D = 1",
    "density": "密度",
    "Both are right on average": "平均来看，两者都对",
    "standard deviation of one estimate": "单次估计的标准差",
    "Only one is of use": "只有一种实用",
    "no KL term": "没有 KL 项",
    "means alone": "只约束均值",
    "variances alone": "只约束方差",
    "both: the KL term": "两者都约束（KL 项）",
    "clouds; dashed: 95% of N(0, I)": "云；虚线圆含 N(0, I) 的 95%",
    "From a {} to a {}; test digits at both ends": "从 {} 到 {}；两端是测试数字",
    "even steps from one code to the other": "两个编码之间等距的点",
    "smallest gap": "最小差距",
    "median gap": "中位差距",
    "largest gap": "最大差距",
    "encoder's q(z | x)": "编码器的 q(z | x)",
    "mean and variances of p(z | x)": "p(z | x) 的均值和方差",
    "{}: {:.2f} nats, a {}": "{}：{:.2f} 奈特，数字 {}",
    "rate (nats)": "码率（奈特）",
    "distortion (squared error)": "失真（平方误差）",
    "What a nat of code buys": "一奈特编码换来什么",
    "The same twelve draws of N(0, I), decoded": "从 N(0, I) 抽取的同样十二个点，解码后",
    # messages
    "{:2} numbers: squared error {:.3f}, discarded eigenvalues {:.3f}, squared error of test digits {:.3f}": (
        "{:2} 个数：平方误差 {:.3f}，舍弃的特征值之和 {:.3f}，测试数字的平方误差 {:.3f}"
    ),
    "largest principal angle: {:.1f} degrees before training, {:.2f} after": (
        "最大主夹角：训练前 {:.1f} 度，训练后 {:.2f} 度"
    ),
    "squared error of test digits: {:.2f}, with PCA {:.2f}": "测试数字的平方误差：{:.2f}，PCA 为 {:.2f}",
    "the autoencoder's directions: lengths {:.2f} and {:.2f}, {:.0f} degrees apart": (
        "自编码器的两个方向：长度 {:.2f} 和 {:.2f}，夹角 {:.0f} 度"
    ),
    "codes of {} training digits: {}": "{} 个训练数字的编码：{}",
    "squared error of these digits: {:.6f}; of test digits: {:.1f}; of the mean image: {:.1f}": (
        "这些数字的平方误差：{:.6f}；测试数字：{:.1f}；平均图像：{:.1f}"
    ),
    "squared error of test digits with two numbers: {:.1f}, with PCA {:.1f}": (
        "用两个数时测试数字的平方误差：{:.1f}，PCA 为 {:.1f}"
    ),
    "squared error of training digits: {:.1f}": "训练数字的平方误差：{:.1f}",
    "test codes inside the disc that holds 95% of N(0, I): {:.0%}": "落在含 N(0, I) 95% 的圆内的测试编码：{:.0%}",
    "draws of a Gaussian fitted to the codes that land in holes: {:.0%}": "从拟合的高斯分布抽取、落入空洞的点：{:.0%}",
    "squared error of test digits with ten numbers: {:.1f}, with PCA {:.1f}": (
        "用十个数时测试数字的平方误差：{:.1f}，PCA 为 {:.1f}"
    ),
    "readable:": "可辨认的比例：",
    "before training: {:.1f} (reconstruction) + {:.2f} (KL)": "训练前：{:.1f}（重构项）+ {:.2f}（KL 项）",
    "{:3} dimensions: standard deviation {:4.2f} reparameterised, {:6.1f} by the score function": (
        "{:3} 维：标准差 {:4.2f}（重参数化），{:6.1f}（得分函数）"
    ),
    "{}: distance of means from zero {:.2f}, mean sigma {:.4f}, draws that betray their image {:.0%}": (
        "{}：均值到零的距离 {:.2f}，平均 σ {:.4f}，暴露了图像的点占 {:.0%}"
    ),
    "squared error of test digits: {:.1f}, with the autoencoder {:.1f}": "测试数字的平方误差：{:.1f}，自编码器 {:.1f}",
    "test codes inside the disc that holds 95% of N(0, I): {:.0%}, of the autoencoder {:.0%}": (
        "落在含 N(0, I) 95% 的圆内的测试编码：{:.0%}，自编码器为 {:.0%}"
    ),
    "draws of N(0, I) in holes: {:.0%}, of the Gaussian fitted to the autoencoder {:.0%}": (
        "从 N(0, I) 抽取、落入空洞的点：{:.0%}，对自编码器拟合的高斯分布为 {:.0%}"
    ),
    "{}: the largest of 20 steps is {:.2f} times the mean step, and the way through image space {:.2f} times as long "
    "as a straight one (medians of 500 walks)": (
        "{}：20 步中最大的一步是平均步长的 {:.2f} 倍，图像空间中的路程是直线距离的 {:.2f} 倍（500 条路线的中位数）"
    ),
    "100 digits, in nats: log p(x) {:.2f} = ELBO {:.2f} + gap {:.2f}": (
        "100 个数字，单位奈特：log p(x) {:.2f} = ELBO {:.2f} + 差距 {:.2f}"
    ),
    "the gap: smallest {:.2f}, median {:.2f}, largest {:.2f}": "差距：最小 {:.2f}，中位数 {:.2f}，最大 {:.2f}",
    "with a Gaussian of the exact mean and variances in place of the encoder's: median {:.2f}": (
        "把编码器的高斯分布换成均值和方差精确的高斯分布：中位数 {:.2f}"
    ),
    "beta {}: rate {:6.2f} nats, squared error {:.2f}, sum {:6.2f}, mean sigma {:.3f}, draws of N(0, I) that are "
    "readable {:.0%}": (
        "beta {}：码率 {:6.2f} 奈特，平方误差 {:.2f}，两者之和 {:6.2f}，平均 σ {:.3f}，N(0, I) 抽样中可辨认的占 {:.0%}"
    ),
    "ten pixels selected: squared error {:.1f}; ten features extracted: {:.1f}": (
        "选择十个像素：平方误差 {:.1f}；提取十个特征：{:.1f}"
    ),
    "variance 1/20, beta 1": "方差 1/20，beta 1",
    "variance 1/2, beta 0.1": "方差 1/2，beta 0.1",
    "variance 1/2, beta 1": "方差 1/2，beta 1",
    "{}: rate {:.2f} nats, squared error {:.2f}": "{}：码率 {:.2f} 奈特，平方误差 {:.2f}",
    "rate {:.4f} nats, squared error {:.1f}, of the mean image {:.1f}": (
        "码率 {:.4f} 奈特，平方误差 {:.1f}，平均图像为 {:.1f}"
    ),
    "{:4} draws: bound {:.2f} nats, {:.2f} below log p(x)": "抽样 {:4} 次：下界 {:.2f} 奈特，比 log p(x) 低 {:.2f}",
    "{}: squared error of its 200 training digits {:.1f}, of test digits {:.1f}": (
        "{}：200 个训练数字的平方误差 {:.1f}，测试数字 {:.1f}"
    ),
}

# Fonts with simplified Chinese characters, as their files are called on Linux, Windows and macOS
FILES = (
    "notosanscjk", "notosanssc", "sourcehansans", "wqy", "droidsansfallback", "msyh", "simhei", "deng", "simsun",
    "pingfang", "hiragino sans gb", "stheiti", "songti", "arial unicode",
)  # fmt: skip


def speak(language: str) -> Callable[..., str]:
    """A function that says an English text in a language, "en" or "zh", with the values of its gaps.

    Chinese needs a font that has all characters of the labels. If none is installed, the texts stay English.
    """
    font = chinese_font() if language == "zh" else None
    plt.rcParams["font.family"] = ["DejaVu Sans", *([font] if font else [])]
    words = CHINESE if font else {}
    return lambda text, *values: words.get(text, text).format(*values)


def chinese_font() -> str | None:
    """The name of an installed font, now known to matplotlib, that has the characters of all labels; or None."""
    needed = {ord(letter) for text in CHINESE.values() for letter in text if letter > "⺀"}
    paths = sorted(map(Path, font_manager.findSystemFonts()), key=lambda path: path.name.lower())
    for name in FILES:
        for path in (path for path in paths if path.name.lower().startswith(name)):
            if needed <= font_manager.get_font(path).get_charmap().keys():
                font_manager.fontManager.addfont(path)
                names = [font.name for font in font_manager.fontManager.ttflist if font.fname == str(path)]
                return min(names, key=lambda name: not name.endswith("SC"))  # simplified Chinese, if the file has more
    return None
