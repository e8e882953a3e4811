/* The rule of megatron/data/blend_order.py as a loop. Compile without contraction of a * b - c to one operation, which
   rounds differently. */

#include <stdint.h>

enum { STEPS = 32 };

static double position(int64_t sample) { return sample > 0 ? (double)sample : 1.0; }

/* Take the `steps` samples from `first` on from `datasets` datasets: each from the first of those furthest behind. */
static void take(const double *restrict shares, double *restrict counts, double *restrict deficits,
                 const int16_t *restrict names, int64_t datasets, int64_t first, int64_t steps,
                 int16_t *restrict chosen, int64_t *restrict within)
{
    for (int64_t i = 0; i < steps; i++) {
        const double now = position(first + i);
        double largest = -1e300;
        for (int64_t d = 0; d < datasets; d++) {
            const double deficit = shares[d] * now - counts[d];
            deficits[d] = deficit;
            largest = deficit > largest ? deficit : largest;
        }
        int64_t furthest = 0;
        while (deficits[furthest] != largest)
            furthest++;
        chosen[i] = names[furthest];
        within[i] = (int64_t)counts[furthest];
        counts[furthest] += 1;
    }
}

/* Fill in the dataset `chosen` and the index `within` of samples [first, first + samples).

   shares, counts: [datasets]; counts before sample `first`, then those after the last sample.
   numbers: [4 * datasets], names: [datasets]; scratch space.

   In a block of STEPS samples, only some datasets can be chosen. If STEPS datasets have a deficit of at least `least`
   at the start, the largest deficit of each step is at least `least`: one of them has not been chosen yet, and its
   deficit has not become smaller. The candidates are the datasets whose deficit reaches this at the last step. */
void blend_order(const double *restrict shares, double *restrict counts, double *restrict numbers,
                 int16_t *restrict names, int64_t datasets, int64_t first, int64_t samples,
                 int16_t *restrict chosen, int64_t *restrict within)
{
    double *deficits = numbers, *share = numbers + datasets, *count = share + datasets, *latest = count + datasets;
    double next = 0;
    for (int64_t done = 0; done < samples; done += STEPS) {
        const int64_t steps = samples - done < STEPS ? samples - done : STEPS;
        const double start = position(first + done), end = position(first + done + steps - 1);
        for (int64_t d = 0; d < datasets; d++) {
            deficits[d] = shares[d] * start - counts[d];
            latest[d] = shares[d] * end - counts[d];
        }
        double least = next;
        for (;;) {
            int64_t reached = 0;
            for (int64_t d = 0; d < datasets; d++)
                reached += deficits[d] >= least;
            if (reached >= (steps < datasets ? steps : datasets)) {
                next = reached >= 2 * STEPS ? least + 1.0 / 64 : least;
                break;
            }
            least -= 1.0 / 32;
        }
        int64_t found = 0;
        for (int64_t d = 0; d < datasets; d++) {
            names[found] = (int16_t)d;
            share[found] = shares[d];
            count[found] = counts[d];
            found += latest[d] >= least;
        }
        take(share, count, deficits, names, found, first + done, steps, chosen + done, within + done);
        for (int64_t c = 0; c < found; c++)
            counts[names[c]] = count[c];
    }
}
