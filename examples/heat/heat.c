/* Heat in a square plate that is cooled at its edges and has a hot spot in the middle.
 *
 *     heat CONDUCTIVITY SPOT SIZE STEPS
 *
 * Explicit finite differences on SIZE x SIZE points. Writes field.bin, the final temperatures as doubles, row by row, and
 * mean.bin, the mean temperature after each step.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void die(const char *why)
{
    fprintf(stderr, "heat: %s\n", why);
    exit(2);
}

static void save(const char *name, const double *values, size_t count)
{
    FILE *file = fopen(name, "wb");
    if (!file || fwrite(values, sizeof *values, count, file) != count || fclose(file))
        die("cannot write its results");
}

int main(int argc, char **argv)
{
    if (argc != 5)
        die("usage: heat CONDUCTIVITY SPOT SIZE STEPS");
    double conductivity = atof(argv[1]), spot = atof(argv[2]);
    int size = atoi(argv[3]), steps = atoi(argv[4]);
    if (conductivity <= 0 || conductivity > 0.25)
        die("the conductivity has to be in (0, 0.25], or the scheme is unstable");
    if (size < 3 || steps < 1)
        die("there is nothing to compute");

    size_t count = (size_t)size * size;
    double *now = calloc(count, sizeof *now), *next = calloc(count, sizeof *next), *mean = calloc(steps, sizeof *mean);
    if (!now || !next || !mean)
        die("out of memory");
    double radius = spot * size / 2, middle = (size - 1) / 2.0;
    for (int i = 0; i < size; i++)
        for (int j = 0; j < size; j++) {
            double x = i - middle, y = j - middle;
            now[i * size + j] = x * x + y * y <= radius * radius;
        }
    for (int step = 0; step < steps; step++) {
        double sum = 0;
        for (int i = 1; i < size - 1; i++)
            for (int j = 1; j < size - 1; j++) {
                const double *at = now + i * size + j;
                double value = *at + conductivity * (at[-1] + at[1] + at[-size] + at[size] - 4 * *at);
                next[i * size + j] = value;
                sum += value;
            }
        mean[step] = sum / count;
        double *swap = now;
        now = next;
        next = swap;
        if ((step + 1) % 100 == 0) {
            printf("step %d of %d\n", step + 1, steps);
            fflush(stdout);
        }
    }
    save("field.bin", now, count);
    save("mean.bin", mean, steps);
    return 0;
}
