# %% setup
import math
from functools import partial

import diagrams
import matplotlib.pyplot as plt
import torch
from matplotlib.patches import Circle, Ellipse
from torch.distributions import Normal
from words import speak

import vaelab.linear
from vaelab.data import MNISTDataModule
from vaelab.likelihoods import Gaussian
from vaelab.models import VAE
from vaelab.networks import MLPDecoder, MLPEncoder
from vaelab.objectives import ELBO, IWAE, Reconstruction
from vaelab.pictures import COLOURS, grid
from vaelab.posteriors import DiagonalGaussian, PointMass
from vaelab.priors import StandardNormal

say = speak("en")  # the language of figures and messages
data = MNISTDataModule(dataset="MNIST-5k", val_size=0, binarization="none")
data.setup()
images, test_images = (data.splits[split][0].float() / 255 for split in ("train", "test"))  # (N, 1, 28, 28)
labels, test_labels = (data.splits[split][1] for split in ("train", "test"))
print(data.description)

GREEN, ROSE, INDIGO = (COLOURS[i] for i in (3, 6, 0))  # PCA, autoencoders, variational autoencoders
plt.rcParams.update({"figure.dpi": 80, "figure.constrained_layout.use": True, "axes.titlesize": 11})

# %% bottleneck
diagrams.bottleneck(say)
plt.show()

# %% selection
diagrams.selection_and_extraction(say)
plt.show()

# %% lossless
diagrams.lossless_and_lossy(say)
plt.show()


# %% pca
def build(latent_dim, posterior, hidden=(), mean="identity"):
    """784 - hidden - D - hidden reversed - 784, with first weights from the same seed every time."""
    torch.manual_seed(0)
    encoder, decoder = partial(MLPEncoder, hidden=hidden), partial(MLPDecoder, hidden=hidden[::-1])
    likelihood = Gaussian(scale=math.sqrt(0.5), mean=mean)  # section 4 says why this scale
    return VAE(latent_dim, (1, 28, 28), encoder, posterior, StandardNormal, decoder, likelihood)


@torch.no_grad()
def squared_error(model, x):
    """The mean over images of their squared distance to their reconstruction."""
    return (x - model.reconstruct(x).mean).square().flatten(1).sum(1).mean().item()


def show(axes, pictures, columns, **labels):
    """Images, row by row, on axes without ticks."""
    axes.imshow(grid(pictures, columns).permute(1, 2, 0))
    axes.set(xticks=[], yticks=[], **labels)


eigenvalues = torch.linalg.eigvalsh(torch.cov(images.flatten(1).double().T, correction=0)).flip(0)
pca = {}
for dim in (2, 10, 50):
    pca[dim] = build(dim, PointMass)
    pca[dim].load_state_dict(vaelab.linear.pca(images, dim))
    error, discarded = squared_error(pca[dim], images), eigenvalues[dim:].sum().item()
    print(say("{:2} numbers: squared error {:.3f}, discarded eigenvalues {:.3f}, squared error of test digits {:.3f}",
              dim, error, discarded, squared_error(pca[dim], test_images)))  # fmt: skip
    assert math.isclose(error, discarded, rel_tol=1e-4)

figure, (left, right) = plt.subplots(1, 2, figsize=(11, 3.6), width_ratios=(5, 3.5))
rows = [test_images[:10], *(model.reconstruct(test_images[:10]).mean.detach() for model in pca.values())]
show(left, torch.cat(rows), 10, title=say("Ten test digits"), ylabel=say("kept of the 784 numbers"))
left.set_yticks([30 + 58 * row for row in range(4)], [say("all"), *pca])
lost = eigenvalues.sum() - eigenvalues.cumsum(0)
right.plot(range(1, 785), lost, color=GREEN)
right.plot(pca.keys(), [squared_error(model, images) for model in pca.values()], "o", color=GREEN)
right.set(xscale="log", xlabel=say("dimensions D of the code"), ylabel=say("squared error of an image"), ylim=0)
right.set_title(say("PCA's error (dots) and the discarded eigenvalues (line)"))
plt.show()


# %% linear-autoencoder
def train(model, objective, images, epochs, learning_rate, batch_size=50, watch=lambda: None):
    """Adam, its learning rate falling to zero; returns what `watch` saw before each step."""
    torch.manual_seed(0)
    steps = epochs * math.ceil(len(images) / batch_size)
    optimizer = torch.optim.Adam(model.parameters(), lr=learning_rate, fused=True)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=1, end_factor=0, total_iters=steps)
    seen = []
    for _ in range(epochs):
        for batch in torch.randperm(len(images)).split(batch_size):
            seen.append(watch())
            loss = objective(model, images[batch])["loss"].mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return seen


mean_image = images.mean(0)  # PCA takes it away first, so we do, too
linear = build(2, PointMass)
planes = [model.decoder.layers[0].weight.detach() for model in (pca[2], linear)]


def angle():
    return vaelab.linear.principal_angle(*planes)


angles = train(linear, Reconstruction(), images - mean_image, 20, 0.02, batch_size=100, watch=angle)
ours, pca_error = squared_error(linear, test_images - mean_image), squared_error(pca[2], test_images)
a, b = planes[1].T
between = math.degrees(torch.acos(a @ b / a.norm() / b.norm()))
print(say("largest principal angle: {:.1f} degrees before training, {:.2f} after", angles[0], angle()))
print(say("squared error of test digits: {:.2f}, with PCA {:.2f}", ours, pca_error))
print(say("the autoencoder's directions: lengths {:.2f} and {:.2f}, {:.0f} degrees apart", a.norm(), b.norm(), between))
assert angles[0] > 80
assert angle() < 2
assert math.isclose(ours, pca_error, rel_tol=0.005)
assert abs(between - 90) > 3

figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6), width_ratios=(5, 4))
left.semilogy(angles, color=ROSE)
left.set(xlabel=say("optimiser step"), ylabel=say("largest principal angle (degrees)"))
left.set_title(say("The plane turns into that of PCA"))
directions = torch.cat([(plane / plane.norm(dim=0)).T for plane in planes]).view(2, 2, 28, 28)
picture = directions.permute(0, 2, 1, 3).reshape(56, 56)
shown = right.imshow(picture, cmap="PuOr", vmin=-0.12, vmax=0.12)
right.set_xticks([14, 42], [say("1st direction"), say("2nd direction")])
right.set_yticks([14, 42], ["PCA", say("autoencoder")])
right.set_title(say("The directions that span it"))
figure.colorbar(shown, label=say("change of a pixel"))
plt.show()


# %% line
@torch.no_grad()
def points_on_a_line(few):
    """An autoencoder 784 - N - 1 - N - 784, without training: it encodes N images as 1, 2, ..., N and decodes them."""
    count = len(few)
    few = few.flatten(1).double()
    look = torch.randn(784, generator=torch.Generator().manual_seed(0)).double()  # a random direction
    seen, order = (few @ look).sort()  # each image is somewhere else in it

    def bend(at, values):
        """Slopes c of sum_k c_k relu(t - at_k), the broken line that rises by `values` between the places `at`."""
        slopes = values / at.diff().view(-1, *[1] * (values.ndim - 1))
        return torch.cat([slopes[:1], slopes.diff(dim=0), -slopes[-1:]])

    model = build(1, PointMass, (count,)).double()
    place = torch.arange(1, count + 1).double()
    encoder, code, decoder, output = (  # the four linear layers
        model.encoder.layers[1], model.posterior.linear, model.decoder.layers[0], model.decoder.layers[2]
    )  # fmt: skip
    encoder.weight[:], encoder.bias[:] = look, -seen
    code.weight[:], code.bias[:] = bend(seen, place.diff()), 1
    decoder.weight[:], decoder.bias[:] = 1, -place
    output.weight[:], output.bias[:] = bend(place, few[order].diff(dim=0)).T, few[order[0]]
    return model, order


few = images[torch.randperm(len(images), generator=torch.Generator().manual_seed(1))[:12]]
line, order = points_on_a_line(few)
few = few[order].double()
numbers = line.encode(few).flatten().detach()
few_error, line_error = squared_error(line, few), squared_error(line, test_images.double())
print(say("codes of {} training digits: {}", len(few), ", ".join(f"{number:.3f}" for number in numbers)))
print(say("squared error of these digits: {:.6f}; of test digits: {:.1f}; of the mean image: {:.1f}",
          few_error, line_error, eigenvalues.sum()))  # fmt: skip
torch.testing.assert_close(numbers, torch.arange(1, 13).double())
assert few_error < 1e-12
assert line_error > eigenvalues.sum()

figure, (top, bottom) = plt.subplots(2, 1, figsize=(11, 3.0))
show(top, few, 12, title=say("Twelve training digits and their codes on a line: no error at all"))
top.set_xticks([30 + 58 * place for place in range(12)], [f"{number:.0f}" for number in numbers])
halves = torch.arange(1.5, 13).double()[:, None]
show(bottom, line.decode(halves).mean.detach(), 12, title=say("What lies between them, and beyond the last"))
bottom.set_xticks([30 + 58 * place for place in range(12)], [f"{number:.1f}" for number in halves.flatten()])
plt.show()

# %% autoencoder
HIDDEN, EPOCHS = (256, 64), 25
autoencoder = build(2, PointMass, HIDDEN, mean="sigmoid")
train(autoencoder, Reconstruction(), images, EPOCHS, 5e-3)
ae_error = squared_error(autoencoder, test_images)
print(say("squared error of test digits with two numbers: {:.1f}, with PCA {:.1f}", ae_error, pca_error))
print(say("squared error of training digits: {:.1f}", squared_error(autoencoder, images)))
assert ae_error < 0.85 * pca_error


# %% holes
@torch.no_grad()
def codes(model, x):
    """A code of each image: the point that an autoencoder chooses, or a draw from the q(z | x) of section 4."""
    torch.manual_seed(1)
    return model(x).latents[0].z[0]


def in_hole(model, z, images=images, test_images=test_images):
    """Which of the points (N, D) have no training code within reach."""
    known = codes(model, images)
    reach = torch.cdist(codes(model, test_images), known).amin(1).quantile(0.95)
    return torch.cdist(z, known).amin(1) > reach


def on_paper(pictures, holes):
    """Pictures in colour, on a red ground where there are holes."""
    ground = torch.where(holes[:, None], torch.tensor([0.45, 0.1, 0.15]), torch.zeros(3))[:, :, None, None]
    return ground + (1 - ground) * pictures


RADIUS = math.sqrt(2 * math.log(20))  # of the disc that holds 95% of N(0, I) in two dimensions


def where_and_what(model, mean, scale, steps=13):
    """Test codes; and what the decoder makes of equally probable steps of N(mean, scale), holes on a red ground."""
    _, (left, right) = plt.subplots(1, 2, figsize=(11, 5.2))
    z = codes(model, test_images)
    for digit, colour in enumerate(COLOURS):
        left.scatter(*z[test_labels == digit].T, s=9, linewidths=0, color=colour)
        box = {"boxstyle": "round,pad=0.15", "facecolor": "white", "edgecolor": colour}
        left.annotate(
            digit, z[test_labels == digit].median(0).values.tolist(), family="DejaVu Sans", weight="bold", bbox=box
        )
    left.add_patch(Circle((0, 0), RADIUS, fill=False, linestyle="--", linewidth=1.5))
    left.set(xlabel="z₁", ylabel="z₂", title=say("Codes of 500 test digits; the dashed disc holds 95% of N(0, I)"))
    left.set_aspect("equal", adjustable="datalim")

    axis = Normal(0, 1).icdf((torch.arange(steps) + 0.5) / steps)
    z = mean + scale * torch.cartesian_prod(axis.flip(0), axis).flip(1)  # z_1 to the right, z_2 upwards
    tiles = on_paper(model.decode(z).mean.detach(), in_hole(model, z))
    show(right, tiles, steps, xlabel="z₁", ylabel="z₂", title=say("What the decoder makes of z; holes are red"))
    ticks = torch.tensor([0, steps // 2, steps - 1])
    right.set_xticks(30 + 58 * ticks, [f"{v:.1f}" for v in z[ticks, 0]])
    right.set_yticks(30 + 58 * ticks, [f"{v:.1f}" for v in z[ticks * steps, 1]])
    plt.show()


known = codes(autoencoder, images)
noise = torch.randn(5000, 2, generator=torch.Generator().manual_seed(0))
fitted = known.mean(0) + noise @ torch.linalg.cholesky(known.T.cov()).T
ae_inside = (codes(autoencoder, test_images).norm(dim=1) < RADIUS).float().mean().item()
ae_holes = in_hole(autoencoder, fitted).float().mean().item()
print(say("test codes inside the disc that holds 95% of N(0, I): {:.0%}", ae_inside))
print(say("draws of a Gaussian fitted to the codes that land in holes: {:.0%}", ae_holes))
assert ae_inside < 0.65
assert ae_holes > 0.1
where_and_what(autoencoder, known.mean(0), known.std(0))


# %% ten-dimensions
@torch.no_grad()
def readable(pictures):
    """The share of pictures that a digit's name can be given to: 9 of the 10 nearest training images agree."""
    distance = torch.cdist(pictures.flatten(1), images.flatten(1))
    names = labels[distance.topk(10, largest=False).indices]  # (N, 10)
    agreeing = (names == names.mode(1, keepdim=True).values).sum(1)
    return (agreeing >= 9).float().mean().item()


deep = build(10, PointMass, (256,), mean="sigmoid")
train(deep, Reconstruction(), images, 8, 3e-3)
ten = torch.randn(1000, 10, generator=torch.Generator().manual_seed(0))
known = codes(deep, images)
with torch.no_grad():
    pictures = {
        say("test digits"): test_images,
        say("reconstructed"): deep.reconstruct(test_images).mean,
        say("z ~ fitted Gaussian"): deep.decode(known.mean(0) + ten @ torch.linalg.cholesky(known.T.cov()).T).mean,
        "z ~ N(0, I)": deep.decode(ten).mean,
    }
deep_error, deep_pca = squared_error(deep, test_images), squared_error(pca[10], test_images)
print(say("squared error of test digits with ten numbers: {:.1f}, with PCA {:.1f}", deep_error, deep_pca))
share = {name: readable(each) for name, each in pictures.items()}
print(say("readable:"), ", ".join(f"{name} {value:.0%}" for name, value in share.items()))
original, rebuilt, from_fitted, from_normal = share.values()
assert deep_error < 0.9 * deep_pca
assert rebuilt > from_fitted > from_normal
assert from_normal < 0.5 * original

figure, axes = plt.subplots(figsize=(10, 2.7))
show(axes, torch.cat([each[:12] for each in pictures.values()]), 12, title=say("A deep autoencoder with ten numbers"))
axes.set_yticks([30 + 58 * row for row in range(4)], pictures)
plt.show()

# %% ae-and-vae
diagrams.ae_and_vae(say)
plt.show()

# %% loss
vae = build(2, DiagonalGaussian, HIDDEN, mean="sigmoid")
with torch.no_grad():
    torch.manual_seed(1)
    (latent,), likelihood = vae(test_images)  # one draw of z for each image
    mu, variance = latent.q.mean, latent.q.variance
    reconstruction = (test_images - likelihood.mean[0]).square().flatten(1).sum(1)
    regularisation = 0.5 * (mu**2 + variance - variance.log() - 1).sum(1)
    torch.manual_seed(1)
    terms = ELBO()(vae, test_images)
constant = 784 / 2 * math.log(math.pi)
torch.testing.assert_close(terms["loss"], reconstruction + regularisation + constant)
torch.testing.assert_close(terms["rate"], regularisation)
print(say("before training: {:.1f} (reconstruction) + {:.2f} (KL)", reconstruction.mean(), regularisation.mean()))

# %% trick-graph
diagrams.reparameterisation(say)
plt.show()


# %% trick-in-ten-lines
def gradients(dimensions, draws=10_000):
    """10,000 one-draw estimates of the gradient of E[f(z)] in mu_1, by either formula."""
    torch.manual_seed(0)
    mu, sigma = torch.ones(draws, dimensions, requires_grad=True), 0.5
    z = mu + sigma * torch.randn(draws, dimensions)  # reparameterised: z depends on mu
    (pathwise,) = torch.autograd.grad((z - 3).square().sum(), mu)
    z = z.detach()  # just drawn: only log q(z) depends on mu
    f, log_q = (z - 3).square().sum(1), Normal(mu, sigma).log_prob(z).sum(1)
    (score,) = torch.autograd.grad((f * log_q).sum(), mu)
    return pathwise[:, 0], score[:, 0]


spread = {}
for dimensions in (1, 2, 5, 10, 20, 50, 100):
    estimates = gradients(dimensions)
    spread[dimensions] = [estimate.std().item() for estimate in estimates]
    for estimate in estimates:  # both are right on average: 2 (1 - 3) = -4
        assert abs(estimate.mean() + 4) < 4 * estimate.std() / math.sqrt(len(estimate))
    print(say("{:3} dimensions: standard deviation {:4.2f} reparameterised, {:6.1f} by the score function",
              dimensions, *spread[dimensions]))  # fmt: skip
assert all(abs(pathwise - 1) < 0.05 for pathwise, _ in spread.values())  # 2 sigma = 1, whatever the dimension
wide = [score for _, score in spread.values()]
assert wide[0] > 5
assert wide == sorted(wide)
assert wide[-1] > 500

figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.4))
names, colours = (say("reparameterised"), say("score function")), (INDIGO, COLOURS[2])
for estimate, name, colour in reversed(list(zip(gradients(1), names, colours, strict=True))):
    left.hist(estimate.numpy(), bins=120, range=(-50, 20), density=True, color=colour, label=name)
left.axvline(-4, color="black", linestyle=":", label=say("exact gradient"))
left.set(xlabel=say("estimate from one draw, D = 1"), ylabel=say("density"), title=say("Both are right on average"))
left.legend(frameon=False)
for name, colour, values in zip(names, colours, zip(*spread.values(), strict=True), strict=True):
    right.loglog(spread.keys(), values, "o-", color=colour, label=name)
right.set(xlabel=say("dimensions D of the code"), ylabel=say("standard deviation of one estimate"))
right.set_title(say("Only one is of use"))
right.legend(frameon=False)
plt.show()


# %% parts-of-the-kl
SHAPES = {0: "o", 1: "s", 4: "^"}
chosen, chosen_test = (torch.isin(names, torch.tensor([*SHAPES])) for names in (labels, test_labels))
three, three_test, three_labels = images[chosen], test_images[chosen_test], test_labels[chosen_test]


def objective_with(means, variances):
    """The squared error, and those parts of the KL term that are switched on by a 1."""

    def objective(model, x):
        (latent,), likelihood = model(x)
        mu, variance = latent.q.mean, latent.q.variance
        kl = means * mu.square() / 2 + variances * (variance - variance.log() - 1) / 2
        return {"loss": -likelihood.log_prob(x)[0] + kl.sum(1)}

    return objective


four, spread, width, alone = {}, {}, {}, {}
titles = {
    (0, 0): say("no KL term"),
    (1, 0): say("means alone"),
    (0, 1): say("variances alone"),
    (1, 1): say("both: the KL term"),
}
for parts, title in titles.items():
    four[parts] = model = build(2, DiagonalGaussian, HIDDEN, mean="sigmoid")
    train(model, objective_with(*parts), three, 20, 5e-3)
    with torch.no_grad():
        q, z = model.infer(three), codes(model, three)
        spread[parts] = q.mean.square().sum(1).mean().sqrt().item()
        width[parts] = q.stddev.mean().item()
        owner = Normal(q.mean, q.stddev).log_prob(z[:, None]).sum(2).argmax(1)  # whose cloud is densest at each draw?
        alone[parts] = (owner == torch.arange(len(z))).float().mean().item()
    print(say("{}: distance of means from zero {:.2f}, mean sigma {:.4f}, draws that betray their image {:.0%}",
              title, spread[parts], width[parts], alone[parts]))  # fmt: skip
assert width[0, 0] < 0.02  # without a pull on the variances: point codes,
assert width[1, 0] < 0.02
assert spread[0, 1] > 5 * spread[1, 1]  # without a pull on the means: far apart
assert width[0, 1] > 0.5
assert min(alone[0, 0], alone[1, 0]) > 0.9  # and in both cases clouds do not meet
assert alone[1, 1] < 0.5 * alone[0, 1]


# %% triangles
@torch.no_grad()
def triangle(model, corners, steps=5):
    """A picture of decoded points of a triangle: its corners (3, 2) are at the top, bottom left and bottom right."""
    size = 30 * steps
    picture = torch.ones(size, size, 3)
    for row in range(steps):
        for column in range(row + 1):
            share = torch.tensor([steps - 1 - row, row - column, column]) / (steps - 1)
            z = (share @ corners)[None]
            tile = on_paper(model.decode(z).mean, in_hole(model, z, three, three_test))[0]
            top, left = 30 * row + 1, (size - 30 * (row + 1)) // 2 + 30 * column + 1
            picture[top : top + 28, left : left + 28] = tile.permute(1, 2, 0)
    return picture


figure, axes = plt.subplots(2, 4, figsize=(12, 6.2))
first = {digit: (three_labels == digit).nonzero()[0].item() for digit in SHAPES}
for (parts, title), (top, bottom) in zip(titles.items(), axes.T, strict=True):
    with torch.no_grad():
        q = four[parts].infer(three_test)
    for digit, shape in SHAPES.items():
        for i in (three_labels == digit).nonzero().flatten()[:25]:
            size = (4 * q.stddev[i]).tolist()  # a radius of two standard deviations
            top.add_patch(Ellipse(q.mean[i].tolist(), *size, color=COLOURS[digit], alpha=0.2, linewidth=0))
        top.scatter(*q.mean[three_labels == digit][:25].T, s=3, color=COLOURS[digit])
        place = q.mean[first[digit]]
        top.plot(*place, shape, markersize=9, color=COLOURS[digit], markeredgecolor="black", label=digit)
    top.add_patch(Circle((0, 0), RADIUS, fill=False, linestyle="--"))
    top.set(title=title)
    top.set_aspect("equal", adjustable="datalim")
    top.autoscale_view()
    corners = q.mean[[first[4], first[0], first[1]]]
    bottom.imshow(triangle(four[parts], corners))
    bottom.axis("off")
axes[0, 0].legend(frameon=False)
axes[0, 0].set_ylabel(say("clouds; dashed: 95% of N(0, I)"))
plt.show()

# %% train-vae
train(vae, ELBO(), images, EPOCHS, 5e-3)
vae_error = squared_error(vae, test_images)
draws = torch.randn(5000, 2, generator=torch.Generator().manual_seed(0))
vae_inside = (codes(vae, test_images).norm(dim=1) < RADIUS).float().mean().item()
vae_holes = in_hole(vae, draws).float().mean().item()
print(say("squared error of test digits: {:.1f}, with the autoencoder {:.1f}", vae_error, ae_error))
print(
    say(
        "test codes inside the disc that holds 95% of N(0, I): {:.0%}, of the autoencoder {:.0%}", vae_inside, ae_inside
    )
)
print(say("draws of N(0, I) in holes: {:.0%}, of the Gaussian fitted to the autoencoder {:.0%}", vae_holes, ae_holes))
assert ae_error < vae_error < pca_error
assert vae_inside > 0.85
assert vae_holes < 0.10
where_and_what(vae, torch.zeros(2), torch.ones(2))


# %% interpolations
@torch.no_grad()
def walk(model, start, end, steps):
    """Decoded images (steps, N, 1, 28, 28) on straight lines between the codes of two batches of images."""
    share = torch.linspace(0, 1, steps)[:, None, None]
    return model.decode(model.encode(start).lerp(model.encode(end), share)).mean


start = test_images[torch.randperm(500, generator=torch.Generator().manual_seed(0))]
end = start.roll(1, 0)
unevenness, detour = [], []
for name, model in ((say("autoencoder"), autoencoder), ("VAE", vae)):
    path = walk(model, start, end, 21).flatten(2)
    change = path.diff(dim=0).norm(dim=2)  # (20 steps, 500 walks)
    unevenness.append((change.amax(0) / change.mean(0)).median().item())
    detour.append((change.sum(0) / (path[-1] - path[0]).norm(dim=1)).median().item())
    print(say("{}: the largest of 20 steps is {:.2f} times the mean step, and the way through image space {:.2f} times "
              "as long as a straight one (medians of 500 walks)", name, unevenness[-1], detour[-1]))  # fmt: skip
assert unevenness[1] < 0.9 * unevenness[0]
assert detour[1] < 0.9 * detour[0]

figure, axes = plt.subplots(2, 1, figsize=(10, 3.5))
for axis, pair in zip(axes, ((0, 7), (4, 0)), strict=True):
    start, end = (test_images[test_labels == digit][:1] for digit in pair)
    rows = [walk(model, start, end, 14).squeeze(1) for model in (autoencoder, vae)]
    ends = [torch.cat([start, row, end]) for row in rows]
    show(axis, torch.cat(ends), 16, title=say("From a {} to a {}; test digits at both ends", *pair))
    axis.set_yticks([30, 88], [say("autoencoder"), "VAE"])
axes[1].set_xlabel(say("even steps from one code to the other"))
plt.show()

# %% posterior
x = test_images[:100]
side = 161
axis = torch.linspace(-5, 5, side)
z, cell = torch.cartesian_prod(axis, axis), (axis[1] - axis[0]) ** 2
with torch.no_grad():
    decoded, q = vae.decode(z).mean.flatten(1), vae.infer(x)
    error = torch.cdist(x.flatten(1), decoded, compute_mode="donot_use_mm_for_euclid_dist").square()
    log_joint = Normal(0, 1).log_prob(z).sum(1) - error - constant  # log p(x, z), (100 images, side^2 codes)
    log_evidence = log_joint.logsumexp(1) + cell.log()  # log p(x)
    log_posterior, log_q = log_joint - log_evidence[:, None], q.log_prob(z[:, None]).T
    gap = (log_q.exp() * (log_q - log_posterior)).sum(1) * cell  # KL(q || posterior)
    weight = log_posterior.exp() * cell
    mean, variance = weight @ z, weight @ z**2 - (weight @ z) ** 2  # of the exact posterior
    log_best = Normal(mean, variance.sqrt()).log_prob(z[:, None]).sum(2).T
    best_gap = (log_best.exp() * (log_best - log_posterior)).sum(1) * cell
    torch.manual_seed(0)
    elbo = ELBO(num_samples=500)(vae, x)["elbo"]  # by draws and the closed form of KL(q || prior), without the grid
print(
    say("100 digits, in nats: log p(x) {:.2f} = ELBO {:.2f} + gap {:.2f}", log_evidence.mean(), elbo.mean(), gap.mean())
)
print(say("the gap: smallest {:.2f}, median {:.2f}, largest {:.2f}", gap.min(), gap.median(), gap.max()))
print(
    say("with a Gaussian of the exact mean and variances in place of the encoder's: median {:.2f}", best_gap.median())
)
torch.testing.assert_close(log_q.exp().sum(1) * cell, torch.ones(100), rtol=0, atol=1e-3)  # the grid is fine enough
assert abs(log_evidence - elbo - gap).mean() < 0.1
assert gap.min() > 0
assert best_gap.median() < 0.5 * gap.median()

figure, panels = plt.subplots(1, 3, figsize=(10, 3.6))
ranked = gap.argsort()
names = (say("smallest gap"), say("median gap"), say("largest gap"))
for panel, index, name in zip(panels, ranked[[0, 50, -1]].tolist(), names, strict=True):
    density = log_posterior[index].exp().view(side, side).T
    panel.imshow(density, origin="lower", extent=(-5, 5, -5, 5), cmap="Greys", interpolation="bilinear")
    centre = q.mean[index]
    for (at, scale), style, label in (
        ((centre, q.stddev[index]), {"color": ROSE, "linewidth": 2}, say("encoder's q(z | x)")),
        (
            (mean[index], variance[index].sqrt()),
            {"color": INDIGO, "linestyle": "--"},
            say("mean and variances of p(z | x)"),
        ),
    ):
        panel.add_patch(Ellipse(at.tolist(), *(4 * scale).tolist(), fill=False, label=label, **style))
    mode = z[log_posterior[index].argmax()]
    middle, half = (centre + mode) / 2, 0.7 + (centre - mode).abs().max() / 2
    panel.set(xlim=(middle[0] - half, middle[0] + half), ylim=(middle[1] - half, middle[1] + half))
    panel.set(xlabel="z₁", ylabel="z₂", title=say("{}: {:.2f} nats, a {}", name, gap[index], test_labels[index]))
    panel.locator_params(nbins=5)
panels[0].legend(loc="upper left", fontsize=8, frameon=False)
plt.show()

# %% betas
family = {}
for beta in (0.0, 0.1, 1.0, 3.0):
    family[beta] = build(10, DiagonalGaussian, (256,), mean="sigmoid")
    train(family[beta], ELBO(beta), images, 6, 3e-3)


@torch.no_grad()
def rate_and_error(model, x):
    """The mean KL term in nats, and the mean squared error of decoded draws from q(z | x)."""
    torch.manual_seed(0)
    trace = model(x)
    return trace.latents[0].kl().mean().item(), (x - trace.likelihood.mean).square().flatten(2).sum(2).mean().item()


rate, distortion, width, share = {}, {}, {}, {}
for beta, model in family.items():
    rate[beta], distortion[beta] = rate_and_error(model, test_images)
    with torch.no_grad():
        width[beta] = model.infer(test_images).stddev.mean().item()
        share[beta] = readable(model.decode(ten).mean)
    print(say("beta {}: rate {:6.2f} nats, squared error {:.2f}, sum {:6.2f}, mean sigma {:.3f}, "
              "draws of N(0, I) that are readable {:.0%}",
              beta, rate[beta], distortion[beta], rate[beta] + distortion[beta], width[beta], share[beta]))  # fmt: skip
by_rate, by_distortion = sorted(rate, key=rate.get), sorted(distortion, key=distortion.get)
assert by_rate == [*family][::-1]  # a larger beta: a smaller rate ...
assert by_distortion == [*family]  # ... and a larger error
assert min(family, key=lambda beta: rate[beta] + distortion[beta]) == 1  # the bound itself is best where it is trained
assert width[0] < 0.1 * width[1]
assert share[0] < 0.8 * share[1]

# Weight beta under variance 1/2, or weight one under variance beta/2: the same gradient up to the factor beta
beta, x = 0.1, test_images[:50]
grads = []
for variance, weight, factor in ((0.5, beta, 1.0), (beta / 2, 1.0, beta)):
    family[beta].likelihood = Gaussian(scale=math.sqrt(variance), mean="sigmoid")
    torch.manual_seed(0)
    loss = factor * ELBO(weight)(family[beta], x)["loss"].mean()
    grads.append(torch.autograd.grad(loss, list(family[beta].parameters())))
for weighted, believed in zip(*grads, strict=True):
    torch.testing.assert_close(weighted, believed, rtol=1e-3, atol=1e-4)

figure, (left, right) = plt.subplots(1, 2, figsize=(11, 3.5), width_ratios=(3, 5))
left.plot(rate.values(), distortion.values(), "o-", color=INDIGO)
for beta in family:
    left.annotate(f"β = {beta:g}", (rate[beta], distortion[beta]), (6, 5), textcoords="offset points")
left.set(xlabel=say("rate (nats)"), ylabel=say("distortion (squared error)"), xscale="log")
left.set_title(say("What a nat of code buys"))
left.margins(0.2)
show(right, torch.cat([model.decode(ten[:12]).mean.detach() for model in family.values()]), 12,
     title=say("The same twelve draws of N(0, I), decoded"))  # fmt: skip
right.set_yticks([30 + 58 * row for row in range(4)], [f"β = {beta:g}" for beta in family])
plt.show()


# %% answer-selection
def predicted_from(kept, x):
    """Images from some of their pixels, by the linear decoder with the least error on the training images."""
    ones = torch.ones(len(images), 1)
    weights = torch.linalg.lstsq(torch.cat([images.flatten(1)[:, kept], ones], 1).double(), images.flatten(1).double())
    return torch.cat([x.flatten(1)[:, kept], torch.ones(len(x), 1)], 1).double() @ weights.solution


kept = images.flatten(1).var(0).topk(10).indices
selection = (test_images.flatten(1) - predicted_from(kept, test_images)).square().sum(1).mean().item()
print(say("ten pixels selected: squared error {:.1f}; ten features extracted: {:.1f}", selection, deep_pca))
assert selection > deep_pca

# %% answer-variance
precise = build(10, DiagonalGaussian, (256,), mean="sigmoid")
precise.likelihood = Gaussian(scale=math.sqrt(1 / 20), mean="sigmoid")
train(precise, ELBO(), images, 6, 3e-3)
for name, (ours, error) in {
    say("variance 1/20, beta 1"): rate_and_error(precise, test_images),
    say("variance 1/2, beta 0.1"): (rate[0.1], distortion[0.1]),
    say("variance 1/2, beta 1"): (rate[1], distortion[1]),
}.items():
    print(say("{}: rate {:.2f} nats, squared error {:.2f}", name, ours, error))
ours, error = rate_and_error(precise, test_images)
assert ours > rate[1]
assert error < distortion[1]
assert math.isclose(ours, rate[0.1], rel_tol=0.03)
assert math.isclose(error, distortion[0.1], rel_tol=0.03)

# %% answer-mean
averaged = build(10, DiagonalGaussian, (256,), mean="sigmoid")
train(averaged, ELBO(784.0), images, 6, 3e-3)
ours, error = rate_and_error(averaged, test_images)
with torch.no_grad():
    outputs = averaged.reconstruct(test_images).mean.flatten(1)
nothing = (test_images - mean_image).square().flatten(1).sum(1).mean().item()
print(say("rate {:.4f} nats, squared error {:.1f}, of the mean image {:.1f}", ours, error, nothing))
assert ours < 0.05
assert math.isclose(error, nothing, rel_tol=0.03)
assert (outputs - outputs.mean(0)).square().sum(1).mean() < 0.1  # whatever goes in, the same comes out

# %% answer-draws
x, bounds = test_images[:100], {}
for count in (1, 10, 100):
    torch.manual_seed(0)
    with torch.no_grad():
        bounds[count] = IWAE(num_samples=count)(vae, x)["bound"].mean().item()
    print(say("{:4} draws: bound {:.2f} nats, {:.2f} below log p(x)",
              count, bounds[count], log_evidence.mean() - bounds[count]))  # fmt: skip
assert [*bounds.values()] == sorted(bounds.values())
assert bounds[100] < log_evidence.mean() + 0.1
assert log_evidence.mean() - bounds[100] < 0.5 * (log_evidence.mean() - bounds[1])

# %% answer-data
small, errors = images[:200], {}
for name, posterior, objective in (
    (say("autoencoder"), PointMass, Reconstruction()), ("VAE", DiagonalGaussian, ELBO())
):  # fmt: skip
    model = build(10, posterior, (256,), mean="sigmoid")
    train(model, objective, small, 100, 3e-3)
    errors[name] = squared_error(model, small), squared_error(model, test_images)
    print(say("{}: squared error of its 200 training digits {:.1f}, of test digits {:.1f}", name, *errors[name]))
ae_gap, vae_gap = (unseen - seen for seen, unseen in errors.values())
assert vae_gap < 0.8 * ae_gap
