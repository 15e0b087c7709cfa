"""The search example with a model that takes one query at a time: what bench/search.py holds batches against."""

from search import HERE, Catalog, Embedder, Index, Ranker, Search

from headrace import serve


@serve.deployment(num_cpus=1, max_ongoing_requests=1)  # more at once would only share its CPU
class OneByOne(Embedder.func_or_class):
    def embed(self, text):
        self.texts += 1
        self.batches += 1
        return self.model.embed([text])[0]


index = Index.bind(str(HERE / "vectors.npz"))
app = Search.bind(OneByOne.bind(), index, Ranker.bind(Catalog.bind(str(HERE / "shop.sqlite"))))
