"""Tabular shifts: penguins, cars and diabetes from packages; income, wine and air from a data folder."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pandas as pd

from unseen.errors import InputError, MissingExtra, nearest
from unseen.registry import Spec, shifts
from unseen.shifts.builtin.data_folder import data_file
from unseen.shifts.shift import Shift


@shifts.register(
    "penguins",
    summary="Sex of a penguin from its measurements, by island",
    paper="Gorman, Williams and Fraser 2014; Horst, Hill and Gorman 2020, palmerpenguins",
)
def penguins() -> Shift:
    """Sex of 333 penguins from bill, flipper, mass and species; the domain is the island, the time the year.

    Only Adelie penguins live on all three islands, so species is a feature: as a label, two of its three
    values would be missing on Torgersen. The 11 of 344 penguins whose sex was not recorded are left out (2 of
    them also lack every measurement); nothing is imputed. Raises MissingExtra without palmerpenguins.
    """
    try:
        from palmerpenguins import load_penguins
    except ImportError:
        raise MissingExtra("the Palmer penguins", "data") from None
    frame = load_penguins().dropna(subset=["sex"])
    return _shift(
        frame.drop(columns=["sex", "island", "year"]),
        label=frame["sex"],
        domain=frame["island"],
        name="penguins",
        time=frame["year"].to_numpy(),
        description="Sex of Palmer penguins from their measurements, by island.",
        source=Spec.make("penguins"),
    )


@shifts.register(
    "cars",
    summary="Does a car of 1970-82 go far on a gallon? By place of origin, with the year as time",
    paper="Quinlan 1993, Combining instance-based and model-based learning (UCI Auto MPG)",
)
def cars(threshold: float = 25.0) -> Shift:
    """Fuel economy of 392 cars from cylinders, displacement, power, weight and acceleration.

    The domain is the place of origin (usa, europe, japan) and the time is the model year (70 to 82).

    threshold  miles per gallon at which a car counts as "economical"; both classes must occur in each domain

    Raises MissingExtra without mlxtend.
    """
    try:
        from mlxtend.data import autompg_data
    except ImportError:
        raise MissingExtra("the Auto MPG data of mlxtend", "data") from None
    values, miles = autompg_data()
    columns = ["cylinders", "displacement", "horsepower", "weight", "acceleration", "year", "origin", "name"]
    frame = pd.DataFrame(values, columns=columns)
    return _shift(
        frame[columns[:5]],
        label=_above(miles, threshold, "thirsty", "economical", "miles per gallon"),
        domain=frame["origin"].map({1.0: "usa", 2.0: "europe", 3.0: "japan"}),
        name="cars",
        time=frame["year"].to_numpy().astype(np.int64),
        description=f"Cars that go {threshold:g} miles or more on a gallon, by place of origin.",
        source=Spec.make("cars", threshold=threshold),
    )


@shifts.register(
    "diabetes",
    summary="Progression of diabetes above the median, by age band or sex",
    paper="Efron et al. 2004, Least angle regression",
)
def diabetes(by: str = "age") -> Shift:
    """Whether the disease of 442 patients got worse within a year than the median patient's.

    by  "age" (domains under-40, 40-54, 55-up; the age is then no feature) or "sex" (domains sex-1 and sex-2:
        the source does not say which is which). Under "age", `group` is the sex. The sex is no feature.
    """
    from sklearn.datasets import load_diabetes

    frame = load_diabetes(scaled=False, as_frame=True).frame.rename(
        columns={
            "s1": "cholesterol",
            "s2": "ldl",
            "s3": "hdl",
            "s4": "ratio",
            "s5": "log_triglycerides",
            "s6": "glucose",
        }
    )
    sex = "sex-" + frame["sex"].astype(int).astype(str)
    domains = {"age": _band(frame["age"], (40, 55)), "sex": sex}
    worse = frame["target"]
    return _shift(
        frame.drop(columns=["target", "sex", *(["age"] if by == "age" else [])]),
        label=_above(worse, worse.median(), "slower", "faster", "progression"),
        domain=_choice(by, domains),
        name="diabetes",
        group=sex if by == "age" else None,
        description=f"Progression of diabetes faster than the median patient's, by {by}.",
        source=Spec.make("diabetes", by=by),
    )


@shifts.register(
    "income",
    summary="Census income above 50,000 dollars, by age, work class or sex (needs adult_income.parquet)",
    paper="Kohavi 1996, Scaling up the accuracy of naive-Bayes classifiers (UCI Adult)",
)
def income(by: str = "age", size: int | None = None, seed: int = 0, path: str | None = None) -> Shift:
    """UCI Adult: 48,842 people of the 1994 census of the United States; `group` is the sex.

    by    "age" (bands under-30, 30-44, 45-59, 60-up), "workclass" (private, government, self-employed),
          "race", "sex" or "country" (United-States, elsewhere). The domain's column is no feature (age is)
    size  people per domain at most, drawn at random; None takes all
    seed  of that draw
    path  adult_income.parquet or its folder; default: the folder that $UNSEEN_DATA names

    A missing entry ("?") is the category "unknown" as a feature; people whose domain is unknown, and under
    "workclass" the 31 without pay, are left out. The sampling weight is dropped, and the number of years at
    school, which repeats the education. Raises InputError when the file is not there.
    """
    frame = pd.read_parquet(data_file("adult_income.parquet", path)).replace("?", "unknown")
    work = {"Private": "private", "Self-emp-not-inc": "self-employed", "Self-emp-inc": "self-employed"}
    work |= {level: "government" for level in ("Local-gov", "State-gov", "Federal-gov")}
    country = frame["native_country"].where(frame["native_country"] != "unknown")
    domains = {
        "age": _band(frame["age"], (30, 45, 60)),
        "workclass": frame["workclass"].map(work),
        "race": frame["race"],
        "sex": frame["sex"],
        "country": country.where(country.isna() | (country == "United-States"), "elsewhere"),
    }
    domain = _choice(by, domains)
    kept = domain.notna()
    if size is not None:
        shuffled = domain[kept].sample(frac=1, random_state=seed)
        kept = frame.index.isin(shuffled[shuffled.groupby(shuffled).cumcount() < size].index)
    own = {"workclass": ["workclass"], "race": ["race"], "sex": ["sex"], "country": ["native_country"]}
    dropped = ["fnlwgt", "education_num", "split", "income", *own.get(by, [])]
    return _shift(
        frame[kept].drop(columns=dropped),
        label=frame["income"][kept],
        domain=domain[kept],
        name="income",
        group=frame["sex"][kept],
        description=f"Income above 50,000 dollars in the census of 1994, by {by}.",
        source=Spec.make("income", by=by, size=size, seed=seed, path=path),
    )


@shifts.register(
    "wine-quality",
    summary="Is a wine good? Red and white wines (needs wine_quality_red_white.csv.gz)",
    paper="Cortez et al. 2009, Modeling wine preferences by data mining from physicochemical properties",
)
def wine_quality(threshold: int = 6, path: str | None = None) -> Shift:
    """Whether tasters gave a red or white wine at least `threshold` of 10 points, from 11 laboratory values.

    threshold  points from which a wine is "good" (4 to 8)
    path       wine_quality_red_white.csv.gz or its folder; default: the folder that $UNSEEN_DATA names

    1,177 of 6,497 rows repeat another and are left out: a wine must not be trained on and validated with. So
    are 2 wines that are listed both as red and as white. Raises InputError when the file is not there.
    """
    frame = pd.read_csv(data_file("wine_quality_red_white.csv.gz", path)).drop_duplicates()
    values = frame.drop(columns=["quality", "color"])
    unclear = values.duplicated(keep=False)
    values, frame = values[~unclear], frame[~unclear]
    return _shift(
        values,
        label=_above(frame["quality"], threshold, "poor", "good", "points"),
        domain=frame["color"],
        name="wine-quality",
        description=f"Portuguese wines with {threshold} points or more, by colour.",
        source=Spec.make("wine-quality", threshold=threshold, path=path),
    )


@shifts.register(
    "pm25",
    summary="Is Beijing's air bad? By year or season, with time (needs beijing_pm25_hourly.parquet)",
    paper="Liang et al. 2015, Assessing Beijing's PM2.5 pollution",
)
def pm25(by: str = "year", every: int = 6, threshold: float = 75.0, path: str | None = None) -> Shift:
    """Whether fine dust reaches `threshold`, from the hour's weather; `time` is datetime64, 2010 to 2014.

    by         "year" (2010 ... 2014) or "season" (then the month is no feature)
    every      take one reading in so many hours: neighbouring hours are so alike that a random validation set
               would flatter the model
    threshold  micrograms per cubic metre; 75 is the daily limit for cities in China's standard GB 3095-2012
    path       beijing_pm25_hourly.parquet or its folder; default: the folder that $UNSEEN_DATA names

    Hours without a reading are left out. Raises InputError when the file is not there.
    """
    if every < 1:
        raise InputError("every", f"is {every}", "Give a number of hours, 1 or more.")
    frame = pd.read_parquet(data_file("beijing_pm25_hourly.parquet", path)).iloc[::every]
    frame = frame.dropna(subset=["pm2.5"])
    seasons = ("winter", "spring", "summer", "autumn")
    domains = {
        "year": frame["year"].astype(str),
        "season": frame["month"].map(lambda month: seasons[month % 12 // 3]),
    }
    domain = _choice(by, domains)
    dropped = ["pm2.5", "year", "day", *(["month"] if by == "season" else [])]
    return _shift(
        frame.drop(columns=dropped).rename(
            columns={"DEWP": "dew_point", "TEMP": "temperature", "PRES": "pressure", "cbwd": "wind_direction"}
            | {"Iws": "wind", "Is": "snow_hours", "Ir": "rain_hours"}
        ),
        label=_above(frame["pm2.5"], threshold, "fair", "bad", "micrograms"),
        domain=domain,
        name="pm25",
        time=pd.to_datetime(frame[["year", "month", "day", "hour"]]).to_numpy(),
        description=f"Hours with {threshold:g} micrograms or more of PM2.5 in Beijing, by {by}.",
        source=Spec.make("pm25", by=by, every=every, threshold=threshold, path=path),
    )


def _shift(
    features: pd.DataFrame,
    label: pd.Series,
    domain: pd.Series,
    name: str,
    description: str,
    source: Spec,
    group: pd.Series | None = None,
    time: np.ndarray | None = None,
) -> Shift:
    """Number the values of label, domain and group in sorted order; ids are rows of the original table."""
    label_codes, classes = pd.factorize(label, sort=True)
    domain_codes, domains = pd.factorize(domain, sort=True)
    group_codes, groups = (None, ()) if group is None else pd.factorize(group, sort=True)
    return Shift(
        name=name,
        kind="table",
        inputs=features.reset_index(drop=True),
        labels=label_codes,
        domain=domain_codes,
        classes=tuple(classes),
        domains=tuple(domains),
        ids=features.index.tolist(),
        group=group_codes,
        groups=tuple(groups),
        time=time,
        description=description,
        source={"source": str(source)},
    )


def _above(values: np.ndarray | pd.Series, threshold: float, below: str, above: str, unit: str) -> pd.Series:
    """The classes of a number cut at a threshold (`above` from it on)."""
    label = pd.Series(np.where(np.asarray(values) >= threshold, above, below))
    if label.nunique() < 2:
        low, high = float(np.min(values)), float(np.max(values))
        raise InputError(
            "threshold", f"is {threshold:g}", f"Give a value between {low:g} and {high:g} {unit}."
        )
    return label


def _band(values: pd.Series, edges: tuple[int, ...]) -> pd.Series:
    """Name the band of each value: under-30, 30-44, 45-up. The names sort in the order of the bands."""
    names = [f"under-{edges[0]}"]
    names += [f"{low}-{high - 1}" for low, high in pairwise(edges)] + [f"{edges[-1]}-up"]
    codes = np.searchsorted(edges, values, side="right")
    return pd.Series(pd.Categorical.from_codes(codes, names, ordered=True), index=values.index)


def _choice(by: str, domains: dict[str, pd.Series]) -> pd.Series:
    if by not in domains:
        raise InputError(f"by={by!r}", "is no way to form the domains", nearest(by, domains))
    return domains[by]
