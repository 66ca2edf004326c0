from ezpyp import Pipeline, as_pickle_step
from ezpyp.steps import PlaceHolder

pipeline = Pipeline("pipeline_cache", "my_pipeline")

@as_pickle_step(pipeline)
def alpha(x):
    return x ** 2

step_alpha = alpha(3)          # not evaluated yet

@as_pickle_step(pipeline)
def beta(x):
    return x ** 3

step_beta = beta(2)

@as_pickle_step(pipeline, depends_on=[step_alpha, step_beta])
def gamma(a, b):
    return a / b

step_gamma = gamma(PlaceHolder(step_alpha), PlaceHolder(step_beta))

pipeline.initialize_schema()
pipeline.execute()
print(f"Pipeline result for gamma: {pipeline.get_result('gamma')}")
