"""Whom to cite: the papers behind the methods that jprune implements.

`REFERENCES`, at the end of this file, is the only place where they are written. `cite`
prints them as BibTeX; the `references:` of CITATION.cff are the same entries in another
notation, and a test holds the two together. To add a paper, append a `Reference` and
run `python tests/test_cite.py`, which rewrites CITATION.cff.
"""

import difflib
from typing import NamedTuple

from jprune._errors import value_error
from jprune._version import __version__


class Reference(NamedTuple):
    """One paper.

    Attributes:
      key: BibTeX key, author-year-word.
      methods: every name `cite` finds it under: short names and public functions.
      kind: BibTeX entry type, "inproceedings", "article" or "misc".
      title: as published.
      authors: each as "Family, Given", in the paper's order.
      year: of the publication named in `venue`.
      venue: proceedings or journal; for "misc", the preprint.
      arxiv: arXiv number, without version.
      volume: of the venue, or "".
      pages: first and last as "1--2", or the article number, or "".
      doi: or "".
    """

    key: str
    methods: tuple[str, ...]
    kind: str
    title: str
    authors: tuple[str, ...]
    year: int
    venue: str
    arxiv: str
    volume: str = ""
    pages: str = ""
    doi: str = ""


def cite(name: str | None = None) -> str:
    """BibTeX for jprune, or for the papers behind one of its methods.

    Args:
      name: a method's short name ("swd", "lamp") or the public function that implements
        it ("add_selective_decay"); letter case is ignored. None: jprune itself.

    Returns:
      One or more BibTeX entries, separated by blank lines.

    Raises:
      ValueError: if no method has that name; the message lists near ones and all.

    Examples:
      >>> print(cite("lamp").splitlines()[0])
      @inproceedings{lee2021layer,
    """
    if name is None:
        return _SOFTWARE
    wanted = name.lower()
    found = [ref for ref in REFERENCES if wanted in ref.methods]
    if not found:
        raise value_error(_unknown(name))
    return "\n\n".join(map(_bibtex, found))


def cited_names() -> tuple[str, ...]:
    """Every name that `cite` knows, sorted."""
    return tuple(sorted({name for ref in REFERENCES for name in ref.methods}))


def _unknown(name: str) -> str:
    near = difflib.get_close_matches(name.lower(), cited_names(), n=3)
    hint = f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
    return (
        f"`name` must be the name of a method that jprune implements, got {name!r}."
        f"{hint} Known: {', '.join(cited_names())}."
    )


def _bibtex(ref: Reference) -> str:
    where = {"article": "journal", "inproceedings": "booktitle"}.get(ref.kind)
    fields = {
        # Braces keep the capitals of names and acronyms whatever the BibTeX style.
        "title": f"{{{ref.title}}}",
        "author": " and ".join(ref.authors),
        where or "howpublished": ref.venue,
        "volume": ref.volume,
        "pages": ref.pages,
        "year": str(ref.year),
        "doi": ref.doi,
        "eprint": ref.arxiv,
        "archivePrefix": "arXiv",
    }
    body = "".join(f"  {k} = {{{v}}},\n" for k, v in fields.items() if v)
    return f"@{ref.kind}{{{ref.key},\n{body}}}"


_SOFTWARE = f"""@software{{jprune,
  title = {{{{jprune: pruning for JAX}}}},
  author = {{{{The jprune authors}}}},
  year = {{2026}},
  version = {{{__version__}}},
}}"""

_NEURIPS = "Advances in Neural Information Processing Systems"
_ICLR = "International Conference on Learning Representations"

REFERENCES: tuple[Reference, ...] = (
    Reference(
        key="han2015learning",
        methods=("magnitude", "prune_once"),
        kind="inproceedings",
        title="Learning both Weights and Connections for Efficient Neural Network",
        authors=("Han, Song", "Pool, Jeff", "Tran, John", "Dally, William J."),
        year=2015,
        venue=_NEURIPS,
        arxiv="1506.02626",
        volume="28",
        pages="1135--1143",
    ),
    Reference(
        key="xu2020trp",
        methods=("trp", "truncate", "truncate_rank", "low_rank"),
        kind="inproceedings",
        title="TRP: Trained Rank Pruning for Efficient Deep Neural Networks",
        authors=(
            "Xu, Yuhui",
            "Li, Yuxi",
            "Zhang, Shuai",
            "Wen, Wei",
            "Wang, Botao",
            "Qi, Yingyong",
            "Chen, Yiran",
            "Lin, Weiyao",
            "Xiong, Hongkai",
        ),
        year=2020,
        venue="International Joint Conference on Artificial Intelligence",
        arxiv="2004.14566",
    ),
    Reference(
        key="li2017pruning",
        methods=("channel_norm", "channels"),
        kind="inproceedings",
        title="Pruning Filters for Efficient ConvNets",
        authors=(
            "Li, Hao",
            "Kadav, Asim",
            "Durdanovic, Igor",
            "Samet, Hanan",
            "Graf, Hans Peter",
        ),
        year=2017,
        venue=_ICLR,
        arxiv="1608.08710",
    ),
    Reference(
        key="liu2017learning",
        methods=("network_slimming", "slimming", "shrinking_scales"),
        kind="inproceedings",
        title="Learning Efficient Convolutional Networks through Network Slimming",
        authors=(
            "Liu, Zhuang",
            "Li, Jianguo",
            "Shen, Zhiqiang",
            "Huang, Gao",
            "Yan, Shoumeng",
            "Zhang, Changshui",
        ),
        year=2017,
        venue="IEEE International Conference on Computer Vision",
        arxiv="1708.06519",
        pages="2755--2763",
    ),
    Reference(
        key="louizos2018learning",
        methods=("l0", "hard_concrete", "learned_gates", "gates"),
        kind="inproceedings",
        title="Learning Sparse Neural Networks through L0 Regularization",
        authors=("Louizos, Christos", "Welling, Max", "Kingma, Diederik P."),
        year=2018,
        venue=_ICLR,
        arxiv="1712.01312",
    ),
    Reference(
        key="zhu2018prune",
        methods=("gradual", "prune_gradually"),
        kind="inproceedings",
        title=(
            "To prune, or not to prune: exploring the efficacy of pruning for model "
            "compression"
        ),
        authors=("Zhu, Michael", "Gupta, Suyog"),
        year=2018,
        venue=f"{_ICLR}, Workshop Track",
        arxiv="1710.01878",
    ),
    Reference(
        key="mocanu2018scalable",
        methods=("erdos_renyi", "set", "sparse_evolutionary"),
        kind="article",
        title=(
            "Scalable training of artificial neural networks with adaptive sparse "
            "connectivity inspired by network science"
        ),
        authors=(
            "Mocanu, Decebal Constantin",
            "Mocanu, Elena",
            "Stone, Peter",
            "Nguyen, Phuong H.",
            "Gibescu, Madeleine",
            "Liotta, Antonio",
        ),
        year=2018,
        venue="Nature Communications",
        arxiv="1707.04780",
        volume="9",
        pages="2383",
        doi="10.1038/s41467-018-04316-3",
    ),
    Reference(
        key="ding2019centripetal",
        methods=("c-sgd", "csgd", "merge_clusters", "merge"),
        kind="inproceedings",
        title=(
            "Centripetal SGD for Pruning Very Deep Convolutional Networks with "
            "Complicated Structure"
        ),
        authors=("Ding, Xiaohan", "Ding, Guiguang", "Guo, Yuchen", "Han, Jungong"),
        year=2019,
        venue="IEEE/CVF Conference on Computer Vision and Pattern Recognition",
        arxiv="1904.03837",
        pages="4943--4953",
    ),
    Reference(
        key="ding2019global",
        methods=("gsm", "mask_by_saliency"),
        kind="inproceedings",
        title="Global Sparse Momentum SGD for Pruning Very Deep Neural Networks",
        authors=(
            "Ding, Xiaohan",
            "Ding, Guiguang",
            "Zhou, Xiangxin",
            "Guo, Yuchen",
            "Han, Jungong",
            "Liu, Ji",
        ),
        year=2019,
        venue=_NEURIPS,
        arxiv="1909.12778",
        volume="32",
        pages="6382--6394",
    ),
    Reference(
        key="lee2019snip",
        methods=("snip", "saliency"),
        kind="inproceedings",
        title=("SNIP: Single-shot Network Pruning based on Connection Sensitivity"),
        authors=("Lee, Namhoon", "Ajanthan, Thalaiyasingam", "Torr, Philip H. S."),
        year=2019,
        venue=_ICLR,
        arxiv="1810.02340",
    ),
    Reference(
        key="molchanov2019importance",
        methods=("saliency",),
        kind="inproceedings",
        title="Importance Estimation for Neural Network Pruning",
        authors=(
            "Molchanov, Pavlo",
            "Mallya, Arun",
            "Tyree, Stephen",
            "Frosio, Iuri",
            "Kautz, Jan",
        ),
        year=2019,
        venue="IEEE/CVF Conference on Computer Vision and Pattern Recognition",
        arxiv="1906.10771",
        pages="11264--11272",
    ),
    Reference(
        key="evci2020rigging",
        methods=("erk", "rigl", "drop_and_grow", "static_sparse"),
        kind="inproceedings",
        title="Rigging the Lottery: Making All Tickets Winners",
        authors=(
            "Evci, Utku",
            "Gale, Trevor",
            "Menick, Jacob",
            "Castro, Pablo Samuel",
            "Elsen, Erich",
        ),
        year=2020,
        venue="International Conference on Machine Learning",
        arxiv="1911.11134",
        volume="119",
        pages="2943--2952",
    ),
    Reference(
        key="frankle2020linear",
        methods=("rewinding", "prune_iteratively"),
        kind="inproceedings",
        title="Linear Mode Connectivity and the Lottery Ticket Hypothesis",
        authors=(
            "Frankle, Jonathan",
            "Dziugaite, Gintare Karolina",
            "Roy, Daniel M.",
            "Carbin, Michael",
        ),
        year=2020,
        venue="International Conference on Machine Learning",
        arxiv="1912.05671",
        volume="119",
        pages="3259--3269",
    ),
    Reference(
        key="renda2020comparing",
        methods=("rewinding", "prune_iteratively"),
        kind="inproceedings",
        title="Comparing Rewinding and Fine-tuning in Neural Network Pruning",
        authors=("Renda, Alex", "Frankle, Jonathan", "Carbin, Michael"),
        year=2020,
        venue=_ICLR,
        arxiv="2003.02389",
    ),
    Reference(
        key="sanh2020movement",
        methods=("movement",),
        kind="inproceedings",
        title="Movement Pruning: Adaptive Sparsity by Fine-Tuning",
        authors=("Sanh, Victor", "Wolf, Thomas", "Rush, Alexander M."),
        year=2020,
        venue=_NEURIPS,
        arxiv="2005.07683",
        volume="33",
        pages="20378--20389",
    ),
    Reference(
        key="lee2021layer",
        methods=("lamp",),
        kind="inproceedings",
        title="Layer-adaptive Sparsity for the Magnitude-based Pruning",
        authors=(
            "Lee, Jaeho",
            "Park, Sejun",
            "Mo, Sangwoo",
            "Ahn, Sungsoo",
            "Shin, Jinwoo",
        ),
        year=2021,
        venue=_ICLR,
        arxiv="2010.07611",
    ),
    Reference(
        key="mishra2021accelerating",
        methods=("n_of_m",),
        kind="misc",
        title="Accelerating Sparse Deep Neural Networks",
        authors=(
            "Mishra, Asit",
            "Latorre, Jorge Albericio",
            "Pool, Jeff",
            "Stosic, Darko",
            "Stosic, Dusan",
            "Venkatesh, Ganesh",
            "Yu, Chong",
            "Micikevicius, Paulius",
        ),
        year=2021,
        venue="arXiv preprint",
        arxiv="2104.08378",
    ),
    Reference(
        key="tessier2022rethinking",
        methods=("swd", "add_selective_decay"),
        kind="article",
        title="Rethinking Weight Decay for Efficient Neural Network Pruning",
        authors=(
            "Tessier, Hugo",
            "Gripon, Vincent",
            "Léonardon, Mathieu",
            "Arzel, Matthieu",
            "Hannagan, Thomas",
            "Bertrand, David",
        ),
        year=2022,
        venue="Journal of Imaging",
        arxiv="2011.10520",
        volume="8",
        pages="64",
        doi="10.3390/jimaging8030064",
    ),
    Reference(
        key="ma2022effective",
        methods=("gap", "c-gap", "p-gap", "grow_and_prune", "grow_in_parallel"),
        kind="inproceedings",
        title="Effective Model Sparsification by Scheduled Grow-and-Prune Methods",
        authors=(
            "Ma, Xiaolong",
            "Qin, Minghai",
            "Sun, Fei",
            "Hou, Zejiang",
            "Yuan, Kun",
            "Xu, Yi",
            "Wang, Yanzhi",
            "Chen, Yen-Kuang",
            "Jin, Rong",
            "Xie, Yuan",
        ),
        year=2022,
        venue=_ICLR,
        arxiv="2106.09857",
    ),
    Reference(
        key="johnson2022weightmom",
        methods=("weightmom", "prune_by_weight_history"),
        kind="misc",
        title=(
            "WeightMom: Learning Sparse Networks using Iterative Momentum-based pruning"
        ),
        authors=("Johnson, Elvis", "Tang, Xiaochen", "Samudrala, Sriramacharyulu"),
        year=2022,
        venue="arXiv preprint",
        arxiv="2208.05970",
    ),
    Reference(
        key="jiang2023pruning",
        methods=("masksparsity", "add_masked_l1"),
        kind="article",
        title="Pruning-aware Sparse Regularization for Network Pruning",
        authors=(
            "Jiang, Nanfei",
            "Zhao, Xu",
            "Zhao, Chaoyang",
            "An, Yongqi",
            "Tang, Ming",
            "Wang, Jinqiao",
        ),
        year=2023,
        venue="Machine Intelligence Research",
        arxiv="2201.06776",
        volume="20",
        doi="10.1007/s11633-022-1353-0",
    ),
    Reference(
        key="wang2023trainability",
        methods=("tpp", "add_decorrelation", "trainability"),
        kind="inproceedings",
        title="Trainability Preserving Neural Pruning",
        authors=("Wang, Huan", "Fu, Yun"),
        year=2023,
        venue=_ICLR,
        arxiv="2207.12534",
    ),
    Reference(
        key="sun2024simple",
        methods=("wanda",),
        kind="inproceedings",
        title="A Simple and Effective Pruning Approach for Large Language Models",
        authors=("Sun, Mingjie", "Liu, Zhuang", "Bair, Anna", "Kolter, J. Zico"),
        year=2024,
        venue=_ICLR,
        arxiv="2306.11695",
    ),
    Reference(
        key="lin2020dynamic",
        methods=("dpf", "straight_through"),
        kind="inproceedings",
        title="Dynamic Model Pruning with Feedback",
        authors=(
            "Lin, Tao",
            "Stich, Sebastian U.",
            "Barba, Luis",
            "Dmitriev, Daniil",
            "Jaggi, Martin",
        ),
        year=2020,
        venue=_ICLR,
        arxiv="2006.07253",
    ),
    Reference(
        key="retsinas2020weight",
        methods=("asl", "learned_thresholds"),
        kind="misc",
        title="Weight Pruning via Adaptive Sparsity Loss",
        authors=(
            "Retsinas, George",
            "Elafrou, Athena",
            "Goumas, Georgios",
            "Maragos, Petros",
        ),
        year=2020,
        venue="arXiv preprint",
        arxiv="2006.02768",
    ),
    Reference(
        key="he2021learning",
        methods=("aswl", "learned_attention"),
        kind="misc",
        title=(
            "Learning Pruned Structure and Weights Simultaneously from Scratch: an "
            "Attention based Approach"
        ),
        authors=(
            "He, Qisheng",
            "Shi, Weisong",
            "Dong, Ming",
        ),
        year=2021,
        venue="arXiv preprint",
        arxiv="2111.02399",
    ),
    Reference(
        key="jayakumar2020top",
        methods=("top-kast", "top_kast"),
        kind="inproceedings",
        title="Top-KAST: Top-K Always Sparse Training",
        authors=(
            "Jayakumar, Siddhant M.",
            "Pascanu, Razvan",
            "Rae, Jack W.",
            "Osindero, Simon",
            "Elsen, Erich",
        ),
        year=2020,
        venue=_NEURIPS,
        arxiv="2106.03517",
        volume="33",
    ),
    Reference(
        key="schwarz2021powerpropagation",
        methods=("powerprop", "powerpropagation"),
        kind="inproceedings",
        title="Powerpropagation: A sparsity inducing weight reparameterisation",
        authors=(
            "Schwarz, Jonathan",
            "Jayakumar, Siddhant M.",
            "Pascanu, Razvan",
            "Latham, Peter E.",
            "Teh, Yee Whye",
        ),
        year=2021,
        venue=_NEURIPS,
        arxiv="2110.00296",
        volume="34",
        pages="28889--28903",
    ),
    Reference(
        key="oh2022attentive",
        methods=("sls", "learned_n_of_m"),
        kind="inproceedings",
        title="Attentive Fine-Grained Structured Sparsity for Image Restoration",
        authors=(
            "Oh, Junghun",
            "Kim, Heewon",
            "Nah, Seungjun",
            "Hong, Cheeun",
            "Choi, Jonghyun",
            "Lee, Kyoung Mu",
        ),
        year=2022,
        venue="IEEE/CVF Conference on Computer Vision and Pattern Recognition",
        arxiv="2204.12266",
        pages="17673--17682",
    ),
    Reference(
        key="wang2023iterative",
        methods=(
            "iss-p",
            "iss-r",
            "issp",
            "issr",
            "shrink_softly",
            "add_growing_decay",
        ),
        kind="inproceedings",
        title=(
            "Iterative Soft Shrinkage Learning for Efficient Image Super-Resolution"
        ),
        authors=(
            "Wang, Jiamian",
            "Wang, Huan",
            "Zhang, Yulun",
            "Fu, Yun",
            "Tao, Zhiqiang",
        ),
        year=2023,
        venue="IEEE/CVF International Conference on Computer Vision",
        arxiv="2303.09650",
    ),
    Reference(
        key="zhou2021learning",
        methods=(
            "sr-ste",
            "sr_ste",
            "n_of_m",
            "add_pruned_decay",
            "prune_to_n_of_m",
            "pack_n_of_m",
        ),
        kind="inproceedings",
        title=(
            "Learning N:M Fine-grained Structured Sparse Neural Networks From Scratch"
        ),
        authors=(
            "Zhou, Aojun",
            "Ma, Yukun",
            "Zhu, Junnan",
            "Liu, Jianbo",
            "Zhang, Zhijie",
            "Yuan, Kun",
            "Sun, Wenxiu",
            "Li, Hongsheng",
        ),
        year=2021,
        venue=_ICLR,
        arxiv="2102.04010",
    ),
    Reference(
        key="haroon2022what",
        methods=(
            "k-starts",
            "dissipating gradients",
            "k_starts",
            "dissipating",
            "dissipating_k_starts",
            "prune_unmoved",
        ),
        kind="misc",
        title="What to Prune and What Not to Prune at Initialization",
        authors=("Haroon, Maham",),
        year=2022,
        venue="arXiv preprint",
        arxiv="2209.02201",
    ),
    Reference(
        key="wang2020picking",
        methods=("grasp",),
        kind="inproceedings",
        title=("Picking Winning Tickets Before Training by Preserving Gradient Flow"),
        authors=("Wang, Chaoqi", "Zhang, Guodong", "Grosse, Roger"),
        year=2020,
        venue=_ICLR,
        arxiv="2002.07376",
    ),
    Reference(
        key="tanaka2020pruning",
        methods=("synflow", "synflow_mask"),
        kind="inproceedings",
        title=(
            "Pruning neural networks without any data by iteratively conserving "
            "synaptic flow"
        ),
        authors=(
            "Tanaka, Hidenori",
            "Kunin, Daniel",
            "Yamins, Daniel L. K.",
            "Ganguli, Surya",
        ),
        year=2020,
        venue=_NEURIPS,
        arxiv="2006.05467",
        volume="33",
        pages="6377--6389",
    ),
    Reference(
        key="hayou2021robust",
        methods=(
            "sbp",
            "robust pruning",
            "edge_of_chaos",
            "rescale",
            "stable resnet",
        ),
        kind="inproceedings",
        title=("Robust Pruning at Initialization"),
        authors=(
            "Hayou, Soufiane",
            "Ton, Jean-Francois",
            "Doucet, Arnaud",
            "Teh, Yee Whye",
        ),
        year=2021,
        venue=_ICLR,
        arxiv="2002.08797",
    ),
    Reference(
        key="frankle2021pruning",
        methods=("shuffle",),
        kind="inproceedings",
        title=(
            "Pruning Neural Networks at Initialization: Why Are We Missing the Mark?"
        ),
        authors=(
            "Frankle, Jonathan",
            "Dziugaite, Gintare Karolina",
            "Roy, Daniel M.",
            "Carbin, Michael",
        ),
        year=2021,
        venue=_ICLR,
        arxiv="2009.08576",
    ),
    Reference(
        key="vysogorets2023connectivity",
        methods=("effective", "flow"),
        kind="article",
        title=(
            "Connectivity Matters: Neural Network Pruning Through the Lens of "
            "Effective Sparsity"
        ),
        authors=("Vysogorets, Artem", "Kempe, Julia"),
        year=2023,
        venue="Journal of Machine Learning Research",
        arxiv="2107.02306",
        volume="24",
    ),
    Reference(
        key="he2017channel",
        methods=("reconstruct", "sample_inputs", "lasso channel pruning"),
        kind="inproceedings",
        title="Channel Pruning for Accelerating Very Deep Neural Networks",
        authors=("He, Yihui", "Zhang, Xiangyu", "Sun, Jian"),
        year=2017,
        venue="IEEE International Conference on Computer Vision (ICCV)",
        arxiv="1707.06168",
        pages="1389--1397",
    ),
    Reference(
        key="men2024shortgpt",
        methods=("block_influence", "shortgpt"),
        kind="misc",
        title=(
            "ShortGPT: Layers in Large Language Models are More Redundant Than You "
            "Expect"
        ),
        authors=(
            "Men, Xin",
            "Xu, Mingyu",
            "Zhang, Qingyu",
            "Wang, Bingning",
            "Lin, Hongyu",
            "Lu, Yaojie",
            "Han, Xianpei",
            "Chen, Weipeng",
        ),
        year=2024,
        venue="arXiv preprint",
        arxiv="2403.03853",
    ),
    Reference(
        key="frantar2023sparsegpt",
        methods=("sparse_gpt", "sparsegpt"),
        kind="inproceedings",
        title=(
            "SparseGPT: Massive Language Models Can be Accurately Pruned in One-Shot"
        ),
        authors=("Frantar, Elias", "Alistarh, Dan"),
        year=2023,
        venue="International Conference on Machine Learning",
        arxiv="2301.00774",
    ),
    Reference(
        key="zhang2019exploiting",
        methods=("similar_channels", "channel similarity"),
        kind="misc",
        title=(
            "Exploiting Channel Similarity for Accelerating Deep Convolutional Neural "
            "Networks"
        ),
        authors=(
            "Zhang, Yunxiang",
            "Zhao, Chenglong",
            "Ni, Bingbing",
            "Zhang, Jian",
            "Deng, Haoran",
        ),
        year=2019,
        venue="arXiv preprint",
        arxiv="1908.02620",
    ),
    Reference(
        key="liu2021weight",
        methods=("rescale_filters", "weight rescaling", "scale_invariance"),
        kind="misc",
        title=(
            "Weight Rescaling: Effective and Robust Regularization for Deep Neural "
            "Networks with Batch Normalization"
        ),
        authors=(
            "Liu, Ziquan",
            "Cui, Yufei",
            "Wan, Jia",
            "Mao, Yu",
            "Chan, Antoni B.",
        ),
        year=2021,
        venue="arXiv preprint",
        arxiv="2102.03497",
    ),
    Reference(
        key="ghosh2023pruning",
        methods=("compact_convnets",),
        kind="misc",
        title="Pruning Compact ConvNets for Efficient Inference",
        authors=(
            "Ghosh, Sayan",
            "Prasad, Karthik",
            "Dai, Xiaoliang",
            "Zhang, Peizhao",
            "Wu, Bichen",
            "Cormode, Graham",
            "Vajda, Peter",
        ),
        year=2023,
        venue="arXiv preprint",
        arxiv="2301.04502",
    ),
    Reference(
        key="dai2021fbnetv3",
        methods=("fbnetv3",),
        kind="inproceedings",
        title=("FBNetV3: Joint Architecture-Recipe Search using Predictor Pretraining"),
        authors=(
            "Dai, Xiaoliang",
            "Wan, Alvin",
            "Zhang, Peizhao",
            "Wu, Bichen",
            "He, Zijian",
            "Wei, Zhen",
            "Chen, Kan",
            "Tian, Yuandong",
            "Yu, Matthew",
            "Vajda, Peter",
            "Gonzalez, Joseph E.",
        ),
        year=2021,
        venue="Conference on Computer Vision and Pattern Recognition",
        arxiv="2006.02049",
    ),
    Reference(
        key="lim2017enhanced",
        methods=("edsr",),
        kind="inproceedings",
        title="Enhanced Deep Residual Networks for Single Image Super-Resolution",
        authors=(
            "Lim, Bee",
            "Son, Sanghyun",
            "Kim, Heewon",
            "Nah, Seungjun",
            "Lee, Kyoung Mu",
        ),
        year=2017,
        venue="Conference on Computer Vision and Pattern Recognition Workshops",
        arxiv="1707.02921",
    ),
    Reference(
        key="kipf2017semi",
        methods=("gcn",),
        kind="inproceedings",
        title="Semi-Supervised Classification with Graph Convolutional Networks",
        authors=("Kipf, Thomas N.", "Welling, Max"),
        year=2017,
        venue="International Conference on Learning Representations",
        arxiv="1609.02907",
    ),
)
